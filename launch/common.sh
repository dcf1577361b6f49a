# shellcheck shell=bash
# What the launch scripts share. It is sourced, not run: options, quoting, and the dry run.

# Bash 4.4 of 2016 is the first that quotes with @Q; macOS comes with 3.2.
if ((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] < 404)); then
  echo "error: bash 4.4 or newer is needed, and this is $BASH_VERSION" >&2
  exit 2
fi

dry_run='' # set by --dry_run, or in the environment by DRY_RUN=1
[[ -n ${DRY_RUN:-} ]] && dry_run=1
rest=() # what `options` leaves: arguments that are no options, and everything after --

say() { printf '%s\n' "$*" >&2; }

# A user's mistake is one line and exit code 2, as in attrjax.main.
die() {
  say "error: $*"
  exit 2
}

# The comment at the head of the script that runs.
usage() { sed -n '2,/^[^#]/s/^#\( \|$\)//p' "$0"; }

# quote WORD...: the words in one line, as bash reads them back.
quote() {
  local word_ line_=()
  for word_; do
    if [[ $word_ =~ ^[A-Za-z0-9_@%+=:,./-]+$ ]]; then
      line_+=("$word_")
    elif [[ $word_ =~ ^(--[A-Za-z0-9_.]+=)(.+)$ && $word_ != *[[:cntrl:]]* ]]; then
      line_+=("${BASH_REMATCH[1]}${BASH_REMATCH[2]@Q}") # --flag='its value' is easier to read than '--flag=...'
    else
      line_+=("${word_@Q}")
    fi
  done
  printf '%s' "${line_[*]}"
}

# run COMMAND...: run it, or print it with --dry_run.
run() {
  if [[ -n $dry_run ]]; then
    quote "$@"
    printf '\n'
  else
    "$@"
  fi
}

# The names of these functions' own variables end in _: they must not hide the options'.

# options KNOWN ARGUMENT...: sets the variables of --NAME=VALUE and of bare --NAME (to 1), and `rest`.
# KNOWN lists the names; one that takes a value ends in "=".
options() {
  local known_=" $1 dry_run help " option_ name_ names_
  shift
  rest=()
  while (($#)); do
    option_=${1#--}
    name_=${option_%%=*}
    if [[ $1 == -- ]]; then
      rest+=("${@:2}")
      return
    elif [[ $1 != --* ]]; then
      rest+=("$1")
    elif [[ $known_ == *" $name_= "* ]]; then
      [[ $option_ == *=?* ]] || die "--$name_ needs a value: --$name_=..."
      printf -v "$name_" %s "${option_#*=}"
    elif [[ $known_ == *" $name_ "* ]]; then
      [[ $option_ != *=* ]] || die "--$name_ takes no value"
      [[ $name_ != help ]] || { usage; exit; }
      printf -v "$name_" 1
    else
      read -ra names_ <<<"$known_"
      die "there is no option --$name_; there are:$(printf ' --%s' "${names_[@]}"). attrjax's own go after --"
    fi
    shift
  done
}

# need NAME...: these options must be given.
need() {
  local name_
  for name_; do [[ -n ${!name_} ]] || die "--$name_ is missing: --$name_=..."; done
}

# whole NAME...: these options must be whole numbers from 1 on.
whole() {
  local name_
  for name_; do
    [[ ${!name_} =~ ^[1-9][0-9]{0,5}$ ]] || die "--$name_=${!name_} must be a whole number from 1 on"
  done
}

# named NAME...: these options must be names that clouds and Kubernetes take.
named() {
  local name_
  for name_; do
    [[ ${!name_} =~ ^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$ ]] ||
      die "--$name_=${!name_}: small letters, digits and dashes, 40 at most, with a letter at the beginning"
  done
}

# for_attrjax: what was given after -- must be there, and must not be what the launcher sets itself.
for_attrjax() {
  local argument_
  [[ " ${rest[*]-}" == *" --config="* && " ${rest[*]-}" == *" --workdir="* ]] ||
    die "attrjax's own arguments are missing: ... -- --config=configs/NAME.py --workdir=runs/NAME"
  for argument_ in "${rest[@]}"; do
    case $argument_ in
      --coordinator* | --processes* | --process=* | --resume | --noresume)
        die "$argument_ is set by the launcher: leave it out" ;;
    esac
  done
}
