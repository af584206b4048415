# The Debian root that images and containers are made of, to be sourced after services.sh.
#
#   debian_root TAR PACKAGES…   a minimal Debian of this machine's release with PACKAGES, as an uncompressed tar
#   debian_suite=SUITE          makes it of that suite (unstable, say) of the same archives instead
#   debian_variant=extract      only unpacks PACKAGES and what they depend on: nothing in it need run
#
# The packages come from where this machine's own apt gets Debian's packages, with its settings (proxy, certificates); neither
# is left in the root. All times in it are at most SOURCE_DATE_EPOCH, so the same packages give the same bytes.

export SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-1686391200}

debian_sources() {
  apt-get indextargets --format 'deb $(REPO_URI) $(RELEASE) $(COMPONENT)' 'Created-By: Packages' 'Origin: Debian'
}

debian_release() { (. /etc/os-release && printf '%s\n' "${VERSION_CODENAME:-}"); }

debian_root() {
  local tar=$1 release sources
  shift
  release=$(debian_release)
  sources=$(debian_sources)
  if [ -z "$sources" ]; then
    # Which archives are Debian's is known only after they have been read once.
    apt-get update --quiet=2 >&2
    sources=$(debian_sources)
  fi
  [ -n "$release" ] && [ -n "$sources" ] || fail "no Debian package archive is configured for apt on this machine"
  if [ -n "${debian_suite:-}" ]; then
    # Updates and security fixes are archives of a release only.
    sources=$(awk -v release="$release" -v suite="$debian_suite" '$3 == release { $3 = suite; print }' <<<"$sources")
    release=$debian_suite
    [ -n "$sources" ] || fail "no Debian package archive of this machine has a suite $release"
  fi
  apt-config dump Acquire | grep -v '^Acquire "";' >"$tar.apt" || true
  printf '%s\n' "$sources" >"$tar.list"
  if ! mmdebstrap --mode=root --variant="${debian_variant:-minbase}" ${1:+--include="$(IFS=,; printf '%s' "$*")"} --aptopt="$tar.apt" \
    --customize-hook='rm -f "$1"/etc/apt/sources.list.d/* "$1"/etc/apt/apt.conf.d/99mmdebstrap "$1"/etc/resolv.conf' \
    --customize-hook='mkdir -p "$1"/etc && echo peel >"$1"/etc/hostname' --format=tar \
    "$release" "$tar.partial" "$tar.list" >"$tar.log" 2>&1; then
    tail -n 20 "$tar.log" >&2
    fail "mmdebstrap could not make a Debian root; the end of its log is above"
  fi
  mv "$tar.partial" "$tar"
  rm -f "$tar.apt" "$tar.list" "$tar.log"
}
