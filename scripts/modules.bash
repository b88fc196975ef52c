# shellcheck shell=bash
# The modules of this repository, for scripts that source it from the root.

ROOT=github.com/millrace-go/millrace

# source_files PATTERN ...: files in git's sense, new ones included, that exist.
source_files() {
  local file
  git ls-files --cached --others --exclude-standard -- "$@" | while read -r file; do
    [[ ! -e $file ]] || echo "$file"
  done
}

# modules: the folder of each module.
modules() { source_files go.mod '*/go.mod' | xargs -n1 dirname; }

# released: those that users import or install, all with one version. The others are for this repository alone.
released() { modules | grep -vxE 'benchmarks|examples|examples/gorm|integration'; }

# path_of FOLDER: the path of the module there.
path_of() { if [[ $1 == . ]]; then echo "$ROOT"; else echo "$ROOT/$1"; fi; }

# tag_of FOLDER VERSION: the tag by which git finds the version of the module there.
tag_of() { if [[ $1 == . ]]; then echo "$2"; else echo "$1/$2"; fi; }

die() {
  echo "${0##*/}: $*" >&2
  exit 1
}
