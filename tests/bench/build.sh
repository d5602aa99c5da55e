#!/usr/bin/env bash
# Times builds beside mmdebstrap: same packages, same mirror, one run.
#
#   tests/bench/build.sh [RECIPE]
#
# Needs mmdebstrap and GNU time (Debian: mmdebstrap, time), a release build of this project, and a near mirror, given
# in PGHA_IMAGE_MIRROR or by this machine's apt sources. RUNS (3) sets how often each build is timed; the table has
# medians. mmdebstrap makes a tarball and nothing else; pgha-image makes the whole image.
set -euo pipefail
cd "$(dirname "$0")/../.."

recipe=${1:-ha-postgres}
runs=${RUNS:-3}
program=$PWD/target/release/pgha-image
for needed in mmdebstrap /usr/bin/time "$program"; do
  command -v "$needed" >/dev/null || { echo "missing: $needed" >&2; exit 2; }
done

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
export PGHA_IMAGE_CACHE_DIR=$scratch/store
cp -r recipes overlays "$scratch/"
export PGHA_IMAGE_PROGRAMS=$PWD/target/release

# Prints the seconds and the peak memory in KiB of one command.
timed() { /usr/bin/time -o "$scratch/time" -f '%e %M' "$@" >"$scratch/log" 2>&1 || { cat "$scratch/log" >&2; exit 1; }; cat "$scratch/time"; }
build() { timed "$program" build "$recipe" --project "$scratch" -o "$scratch/out" --quiet "$@"; }
median() { sort -g | awk '{ line[NR] = $0 } END { print line[int((NR + 1) / 2)] }'; }
# Runs a function $runs times; the median by seconds.
repeat() { for _ in $(seq "$runs"); do "$@"; done | median; }

cold() { rm -rf "$PGHA_IMAGE_CACHE_DIR" "$scratch/out"; build; }
edited() {
  date +%N >>"$scratch/overlays/system/rootfs/etc/motd"
  build
}
unchanged() { build; }
locked() { build --locked "$scratch/out/$recipe.lock.json" --offline; }

# The same packages, by version, from the same mirror.
peer() {
  local lock="$scratch/out/$recipe.lock.json" packages
  packages=$(awk -F'"' '$2 == "name" { name = $4 } $2 == "version" { printf "%s%s=%s", sep, name, $4; sep = "," }' "$lock")
  rm -f "$scratch/peer.tar"
  timed mmdebstrap --quiet --variant=custom --include="$packages" \
    --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
    --dpkgopt='path-exclude=/usr/share/locale/*' trixie "$scratch/peer.tar" "$scratch/sources.list"
}
mirror=${PGHA_IMAGE_MIRROR:-$(awk '$1 == "URIs:" && $2 ~ /\/debian\/?$/ { print $2; exit } $1 == "deb" && $2 ~ /\/debian\/?$/ { print $2; exit }' /etc/apt/sources.list.d/*.sources /etc/apt/sources.list 2>/dev/null)}
mirror=${mirror%/}
cat >"$scratch/sources.list" <<LIST
deb $mirror trixie main
deb $mirror trixie-updates main
deb ${mirror%/debian}/debian-security trixie-security main
LIST

mkdir -p "$scratch/overlays/system/rootfs/etc"
row() { # label, "seconds kib", seconds of the peer
  awk -v label="$1" -v figures="$2" -v peer="$3" 'BEGIN {
    split(figures, f, " ")
    printf "%-44s %8.2f s %8.0f MiB %7.3f\n", label, f[1], f[2] / 1024, f[1] / peer
  }'
}
cold=$(repeat cold)
peer=$(repeat peer)
seconds=${peer%% *}
printf '%s: %s packages, median of %s\n' "$recipe" "$(grep -c '"sha256"' "$scratch/out/$recipe.lock.json")" "$runs"
printf '%-44s %10s %12s %7s\n' '' time 'peak memory' ratio
row 'mmdebstrap, a tarball only' "$peer" "$seconds"
row 'cold, empty store, the whole image' "$cold" "$seconds"
row 'one overlay file edited' "$(repeat edited)" "$seconds"
row 'nothing changed' "$(repeat unchanged)" "$seconds"
row 'nothing changed, locked and offline' "$(repeat locked)" "$seconds"
