"""Linen networks and nothing else: they take named arguments and import nothing of the project's outside this
package.
"""
