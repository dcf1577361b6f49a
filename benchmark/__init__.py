"""Commands that measure attrjax against its peers: ``parity`` and ``speed``, explained in README.md here."""
