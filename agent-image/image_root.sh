#!/bin/sh
# Unpacks the Debian packages of the agent's image for an architecture into a folder; runs nothing of theirs, so any
# machine makes the image of any architecture, and the image has no package manager, no setuid program and no account
# but its own.
#
# image_root.sh ARCHITECTURE FOLDER PACKAGE...
set -eu

arch=$1 root=$2
shift 2
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/lists/partial" "$work/archives/partial" "$root/var/lib/dpkg/status.d" "$root/etc/ssl/certs"
: >"$work/status"

# apt with the builder's own sources and keys, for another architecture, as if nothing were installed.
foreign_apt() {
  apt-get -qq -o APT::Architecture="$arch" -o APT::Architectures="$arch" -o Dir::State="$work" \
    -o Dir::State::Lists="$work/lists" -o Dir::State::status="$work/status" -o Dir::Cache="$work" \
    -o Dir::Cache::archives="$work/archives" -o Debug::NoLocking=1 -o APT::Sandbox::User=root "$@"
}
foreign_apt update
foreign_apt install --no-install-recommends --download-only --yes "$@"

for deb in "$work"/archives/*.deb; do
  dpkg-deb --extract "$deb" "$root"
  # As in images without dpkg, so that scanners and our own list of packages know what is inside.
  dpkg-deb --field "$deb" >"$root/var/lib/dpkg/status.d/$(dpkg-deb --field "$deb" Package)"
done

# What the packages' own scripts would have done, as far as the agent needs it.
cat "$root"/usr/share/ca-certificates/mozilla/*.crt >"$root/etc/ssl/certs/ca-certificates.crt"
printf 'root:x:0:0:root:/root:/sbin/nologin\ntokensweep:x:10001:10001::/var/lib/tokensweep:/sbin/nologin\n' \
  >"$root/etc/passwd"
printf 'root:x:0:\ntokensweep:x:10001:\n' >"$root/etc/group"
[ -e "$root/bin/sh" ] || ln -s dash "$root/bin/sh"
install -d -m 1777 "$root/tmp"
install -d -o 10001 -g 10001 "$root/var/lib/tokensweep"

# Documentation, translations and what only an installed system uses; licences stay.
find "$root/usr/share/doc" -type f ! -name copyright -delete
rm -rf "$root/usr/share/man" "$root/usr/share/locale" "$root/usr/share/lintian" "$root/usr/share/bug" \
  "$root/usr/share/doc-base" "$root/usr/share/info" "$root/var/cache" "$root/var/log"
find "$root" -perm /6000 -type f -exec chmod a-s {} +

# Imports compiled once here, as an image is read-only for its user; checked by nobody, so that no time counts.
python3 -m compileall -q --invalidation-mode unchecked-hash -s "$root" -p / "$root/usr/lib/python3.11"
