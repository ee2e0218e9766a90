#!/usr/bin/env bash
# Installs the system packages that edgekit's test suite needs and that Python packages do not bring.
#
#   bash scripts/install-system-packages.sh          install what is missing
#   bash scripts/install-system-packages.sh --check  only say what is missing; exit 1 where something is
#
# Without root it prints the command to type, and exits 1 where something is missing.
set -euo pipefail

# One line a package: package | a program, or a file, that shows it is there | why.
packages() {
    cat <<'TABLE'
chromium       | chromium   | the HTML report is opened in a real browser, and what it draws is looked at
openssh-server | sshd       | the ssh transport is tested against a real sshd on 127.0.0.1, started by the tests with their own keys
adb            | adb        | the adb transport is tested with the real program against a simulated device, on a server and port of its own
mksh           | mksh       | is the simulated device's shell, as it is Android's
toybox         | toybox     | gives that device Android's own tools and no others
busybox        | busybox    | is the shell of a small Linux device that has no Python
debootstrap    | debootstrap | fetches the Debian systems of the emulated Raspberry Pi
debian-archive-keyring | /usr/share/keyrings/debian-archive-keyring.gpg | proves that those packages are Debian's
qemu-user-static | qemu-aarch64-static | runs their programs, which are Arm's
openssh-client | ssh-keygen | makes those keys; edgekit devices trust is compared with what ssh-keygen says
TABLE
}

trim() { sed 's/^[[:space:]]*//; s/[[:space:]]*$//' <<<"$1"; }

# Daemons live in sbin, which is not on every user's PATH.
present() { [ -f "$1" ] || PATH="$PATH:/usr/sbin:/sbin" command -v "$1" >/dev/null 2>&1; }

mode="${1:-install}"
case "$mode" in
    install | --check) ;;
    *)
        echo "usage: $0 [--check]" >&2
        exit 2
        ;;
esac

missing=()
while IFS='|' read -r package program reason; do
    package="$(trim "$package")"
    program="$(trim "$program")"
    if ! present "$program"; then
        missing+=("$package")
        echo "missing: $package: $(trim "$reason")" >&2
    fi
done < <(packages)

if [ "${#missing[@]}" -eq 0 ]; then
    echo "system packages: all there"
    exit 0
fi
if [ "$mode" = --check ]; then
    exit 1
fi

install=(apt-get install --yes --no-install-recommends "${missing[@]}")
if ! command -v apt-get >/dev/null 2>&1; then
    echo "This script knows apt only. Install with your own package manager: ${missing[*]}" >&2
    exit 1
fi
if [ "$(id -u)" -ne 0 ]; then
    echo "Run:  sudo apt-get update && sudo ${install[*]}" >&2
    exit 1
fi

export DEBIAN_FRONTEND=noninteractive
# The tests start their own sshd; a service of the system must not start because a test suite ran.
if [ ! -e /usr/sbin/policy-rc.d ]; then
    printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d
    chmod 755 /usr/sbin/policy-rc.d
    trap 'rm -f /usr/sbin/policy-rc.d' EXIT
fi
apt-get update --quiet --quiet </dev/null
"${install[@]}" --quiet </dev/null

for package in "${missing[@]}"; do
    dpkg-query --show --showformat='${Status}' "$package" | grep -q 'install ok installed' || {
        echo "$package was not installed" >&2
        exit 1
    }
done
