"""What a device without Python does with releases: scripts for its shell, with no tool that toybox lacks.

The folder is the agent's (`docs/agent-protocol.md`). Renames go *into a folder* (`mv a/current folder/`), which replaces a
symbolic link atomically with every `mv`; `mv -T` is too new for many devices. toybox's `find -mtime +0` means "older than
now", so a day's age is written `+1`; its `timeout` loses exit statuses now and then. A script answers in lines of a word and a
value; one that fails prints `error KIND text` and ends with status 9.
"""

from __future__ import annotations

_COMMON = """\
set -u
root=$1; token=$2; until=$3; shift 3
fail() { echo "error $1 $2"; exit 9; }
now() { date +%s; }
boot() { cat /proc/sys/kernel/random/boot_id 2>/dev/null || echo unknown; }
lock=$root/lock.d
renew() {
    [ "$(cat "$lock/owner" 2>/dev/null)" = "$token" ] || fail lost "another run has taken the device"
    echo $(( $(now) + until )) > "$lock/until.$token" && mv -f "$lock/until.$token" "$lock/until"
}
unlock() { [ "$(cat "$lock/owner" 2>/dev/null)" = "$token" ] && rm -rf "$lock"; :; }
hash_of() { h=$(sha256sum < "$1" 2>/dev/null) || h=; echo "${h%% *}"; }
whole() {
    [ -f "$1/release.txt" ] || return 1
    while read -r sha path; do
        [ "$(hash_of "$1/$path")" = "$sha" ] || return 1
    done < "$1/release.txt"
}
current_of() { l=$(readlink "$1/current" 2>/dev/null) || l=; echo "${l##*/}"; }
switch_to() {
    rm -rf "$1"/.switch-* && mkdir "$1/.switch-$token" && ln -s "releases/$2" "$1/.switch-$token/current" &&
        sync && mv -f "$1/.switch-$token/current" "$1/" && rmdir "$1/.switch-$token" && sync
}
notify() {
    [ -x "$1/on-switch" ] || return 0
    "$1/on-switch" "$1/current" "$2" < /dev/null > /dev/null 2>&1 & h=$!
    ( sleep 30; kill -9 $h ) < /dev/null > /dev/null 2>&1 & w=$!
    wait $h; echo "hook $?"
    kill $w
}
"""

INSPECT = """\
root=$1 token=$2 model=$3; shift 3
mkdir -p "$root/store" "$root/models" "$root/runs" "$root/runtimes" || { echo "error permission"; exit 9; }
for b in "$@"; do [ -f "$root/store/$b" ] && touch -c "$root/store/$b" || echo "missing $b"; done
l=$(readlink "$root/models/$model/current" 2>/dev/null) && echo "current ${l##*/}"
[ -s "$root/trusted-key" ] && echo "trusted $(head -n 1 "$root/trusted-key")"
section() { echo; echo "$token $1"; }
section df; df -k "$root"
"""
"""Arguments: root, mark, model, blobs. What is missing, then sections; a `FactsReader`'s script follows it."""

LOCK = (
    _COMMON
    + """\
wait=$1; end=$(( $(now) + wait ))
while ! mkdir "$lock" 2>/dev/null; do
    [ -d "$root" ] || fail permission "there is no folder $root"
    o=$(cat "$lock/owner" 2>/dev/null); u=$(cat "$lock/until" 2>/dev/null); b=$(cat "$lock/boot" 2>/dev/null)
    [ -n "$u" ] || u=$(( $(stat -c %Y "$lock" 2>/dev/null || now) + 60 ))
    if [ "$(now)" -gt "$u" ] || { [ -n "$b" ] && [ "$b" != "$(boot)" ]; }; then
        mkdir "$root/.stale-$token" && mv "$lock" "$root/.stale-$token/" 2>/dev/null
        if [ "$(cat "$root/.stale-$token/lock.d/owner" 2>/dev/null)" != "$o" ]; then
            mv "$root/.stale-$token/lock.d" "$root/" 2>/dev/null
        fi
        rm -rf "$root/.stale-$token"
        continue
    fi
    [ "$(now)" -ge "$end" ] && fail busy "another run has held the device for $wait s"
    sleep 1
done
boot > "$lock/boot"; echo "$token" > "$lock/owner"; renew
rm -rf "$root"/models/*/releases/.stage-* "$root"/models/*/.switch-* "$root"/.stale-*
find "$root/runs" -mindepth 1 -maxdepth 1 -type d -mtime +1 -exec rm -rf {} +
echo "locked $token"
"""
)
"""Argument: seconds to wait. A lock is void once its time is over, or when the device was started again since."""

INSTALL = (
    _COMMON
    + """\
model=$1 digest=$2 record=$3; shift 3; renew
folder=$root/models/$model; final=$folder/releases/$digest; stage=$folder/releases/.stage-$token
mkdir -p "$folder/releases" || fail permission "the folder $folder/releases cannot be made"
if whole "$final"; then echo "kept $digest"; exit 0; fi
rm -rf "$stage"; mkdir -p "$stage/$digest" || fail disk-full "the folder $stage cannot be made"
while [ $# -gt 1 ]; do
    sha=$1 path=$2; shift 2; blob=$root/store/$sha
    [ -f "$blob" ] || fail blob "$sha"
    [ "$(hash_of "$blob")" = "$sha" ] || { rm -f "$blob"; fail blob "$sha"; }
    case $path in */*) mkdir -p "$stage/$digest/${path%/*}";; esac
    ln "$blob" "$stage/$digest/$path" 2>/dev/null || cp "$blob" "$stage/$digest/$path" || fail disk-full "$path"
    echo "$sha $path" >> "$stage/$digest/release.txt" || fail disk-full release.txt
done
printf '%s' "$record" > "$stage/$digest/release.json" || fail disk-full release.json
whole "$stage/$digest" || fail blob "a file that was just laid out"
sync
if [ -e "$final" ]; then mkdir "$stage/old" && mv "$final" "$stage/old/"; fi
mv "$stage/$digest" "$folder/releases/" || fail permission "$final"
rm -rf "$stage"; sync
echo "made $digest"
"""
)
"""Arguments: model, digest, JSON record, then hash and path of each file."""

SWITCH = (
    _COMMON
    + """\
model=$1 digest=$2 keep=$3; renew
folder=$root/models/$model; before=$(current_of "$folder")
whole "$folder/releases/$digest" || fail blob "the release $digest"
{ grep -v -x -F "$digest" "$folder/history" 2>/dev/null; echo "$digest"; } > "$folder/.history-$token" || fail disk-full history
mv -f "$folder/.history-$token" "$folder/history"
if [ "$before" != "$digest" ]; then switch_to "$folder" "$digest" || fail permission "current"; fi
[ "$(current_of "$folder")" = "$digest" ] || fail permission "current was not switched"
[ -z "$before" ] || echo "previous $before"
tail -n $(( keep + 1 )) "$folder/history" > "$folder/.keep-$token"
for r in "$folder"/releases/*; do
    [ -d "$r" ] && ! grep -q -x -F "${r##*/}" "$folder/.keep-$token" && rm -rf "$r"
done
rm -f "$folder/.keep-$token"
for b in $(find "$root/store" -type f -mtime +1); do
    grep -q -s -F "${b##*/}" "$root"/models/*/releases/*/release.txt || rm -f "$b"
done
notify "$folder" "$before"
echo "current $digest"
"""
)
"""Arguments: model, digest, how many releases before it stay."""

ROLLBACK = (
    _COMMON
    + """\
model=$1 to=$2; renew
folder=$root/models/$model; before=$(current_of "$folder")
[ -n "$before" ] || fail release "there is no release of $model"
if [ -z "$to" ]; then
    to=$(grep -v -x -F "$before" "$folder/history" 2>/dev/null | tail -n 1)
else
    [ -d "$folder/releases/$to" ] || to=$(cd "$folder/releases" && ls -d "$to"* 2>/dev/null | head -n 1)
fi
[ -n "$to" ] && [ -d "$folder/releases/$to" ] || fail release "no such earlier release of $model"
whole "$folder/releases/$to" || fail blob "a file of the release $to is not what it was; deploy it anew"
switch_to "$folder" "$to" || fail permission "current"
grep -v -x -F "$before" "$folder/history" > "$folder/.history-$token"
mv -f "$folder/.history-$token" "$folder/history"
echo "previous $before"
notify "$folder" "$before"
echo "current $to"
"""
)
"""Arguments: model, digest to go back to or its beginning (empty: the one before)."""

VERIFY = (
    _COMMON
    + """\
renew
for b in "$@"; do
    [ -f "$root/store/$b" ] || fail blob "$b"
    [ "$(hash_of "$root/store/$b")" = "$b" ] || { rm -f "$root/store/$b"; fail blob "$b"; }
done
echo "verified $#"
"""
)
"""Arguments: blobs. Those that are not what their names say are removed."""

HOLD = _COMMON + 'renew\necho "held $token"\n'

UNLOCK = _COMMON + 'unlock\necho "unlocked $token"\n'

OUTPUTS = (
    _COMMON
    + """\
work=$1 blob=$2 bytes=$3; shift 3; renew
rm -rf "$work"; mkdir -p "$work/in" || fail permission "$work"
[ "$(hash_of "$root/store/$blob")" = "$blob" ] || { rm -f "$root/store/$blob"; fail blob "$blob"; }
split -b "$bytes" -a 6 "$root/store/$blob" "$work/in/x" || fail disk-full "$work"
n=0
for f in "$work"/in/*; do
    rm -f "$work/one"
    "$@" "--input_layer_value_files=in:$f" "--output_filepath=$work/one" < /dev/null > "$work/log" 2>&1 ||
        { tail -n 20 "$work/log"; fail model "the run of example $n failed"; }
    [ -s "$work/one" ] || fail model "benchmark_model wrote no outputs of example $n"
    cat "$work/one" >> "$work/all" || fail disk-full "$work"
    n=$(( n + 1 )); echo "edgekit: example $n" >&2
done
rm -rf "$work/in" "$work/one"
echo "computed $n"
"""
)
"""Arguments: a folder, the hash of the inputs' blob, bytes of one call, then the command but for its files."""
