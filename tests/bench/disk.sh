#!/usr/bin/env bash
# Times writing VM images beside mke2fs and qemu-img: same tree, one run.
#
#   tests/bench/disk.sh [RECIPE]
#
# As root, so that the tree keeps its owners. Needs e2fsprogs, qemu-utils and GNU time (Debian: e2fsprogs, qemu-utils,
# time), a release build of this project, and a mirror as tests/bench/build.sh does. RUNS (3) sets how often each is
# timed; the table has medians. The peers make a file system and compress it; pgha-image makes the whole bootable disk
# with its digests, partitions and boot loaders.
set -euo pipefail
cd "$(dirname "$0")/../.."

recipe=${1:-ha-postgres}
runs=${RUNS:-3}
program=$PWD/target/release/pgha-image
for needed in mke2fs qemu-img debugfs /usr/bin/time "$program"; do
  command -v "$needed" >/dev/null || { echo "missing: $needed" >&2; exit 2; }
done

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
export PGHA_IMAGE_CACHE_DIR=${PGHA_IMAGE_CACHE_DIR:-$scratch/store}
export PGHA_IMAGE_PROGRAMS=$PWD/target/release
cp -r recipes overlays "$scratch/"

timed() { /usr/bin/time -o "$scratch/time" -f %e "$@" >"$scratch/log" 2>&1 || { cat "$scratch/log" >&2; exit 1; }; cat "$scratch/time"; }
build() { timed "$program" build "$recipe" --project "$scratch" -o "$scratch/out" --quiet "$@"; }
median() { sort -g | awk '{ line[NR] = $0 } END { print line[int((NR + 1) / 2)] }'; }
repeat() { for _ in $(seq "$runs"); do "$@"; done | median; }

edit() {
  mkdir -p "$scratch/overlays/boot/rootfs/etc"
  date +%N >"$scratch/overlays/boot/rootfs/etc/motd"
}
first() { rm -rf "$PGHA_IMAGE_CACHE_DIR"/actions/{clusters,checked} "$scratch"/out/*.qcow2; build --format qcow2; }
again() { rm -f "$scratch"/out/*.qcow2; build --format qcow2; }
edited_qcow2() { edit; build --format qcow2; }
edited_raw() { edit; build --format raw; }

build --format raw >/dev/null
raw=("$scratch"/out/*.raw)
# The tree, from the disk itself.
offset=$((262144 * 512))
size=$(stat -c %s "${raw[0]}")
mkdir "$scratch/tree"
debugfs -R "rdump / $scratch/tree" "${raw[0]}?offset=$offset" >/dev/null 2>&1
rm -rf "$scratch/tree/lost+found"

peer() { # compression
  rm -f "$scratch/peer.raw" "$scratch/peer.qcow2"
  timed sh -c "truncate -s $size '$scratch/peer.raw' &&
    mke2fs -q -t ext4 -d '$scratch/tree' '$scratch/peer.raw' &&
    qemu-img convert -c -O qcow2 -o compression_type=$1 '$scratch/peer.raw' '$scratch/peer.qcow2'"
}
build --format qcow2 >/dev/null
zlib=$(repeat peer zlib)
zstd=$(repeat peer zstd)
row() { awk -v label="$1" -v s="$2" -v a="$zlib" -v b="$zstd" 'BEGIN { printf "%-44s %8.2f s %10.3f %10.3f\n", label, s, s / a, s / b }'; }
printf '%s: %s MiB of files, median of %s\n' "$recipe" "$(du -sm "$scratch/tree" | cut -f1)" "$runs"
printf '%-44s %10s %10s %10s\n' '' time 'of zlib' 'of zstd'
row 'mke2fs -d, qemu-img convert -c, zlib' "$zlib"
row 'mke2fs -d, qemu-img convert -c, zstd' "$zstd"
row 'qcow2 from a cached root file system' "$(repeat first)"
row 'the same, clusters remembered' "$(repeat again)"
row 'one overlay file edited, qcow2' "$(repeat edited_qcow2)"
row 'one overlay file edited, raw' "$(repeat edited_raw)"
