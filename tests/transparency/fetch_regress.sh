#!/usr/bin/env bash
# Fetches PostgreSQL's own regression tests, of the version that is installed, and builds the library they load.
#
#   tests/transparency/fetch_regress.sh      into target/regress/VERSION; does nothing when it is there
#
# The SQL and the expected files come from the Debian source package; the headers from postgresql-server-dev, which is
# unpacked only: installed, it would bring a whole LLVM. apt works on folders of its own: the machine's sources and
# package lists stay as they are, and deb-src need not be among them.
set -euo pipefail
cd "$(dirname "$0")/../.."

say() { printf 'regress: %s\n' "$*"; }
fail() { say "$*" >&2; exit 1; }

SERVER=$(find /usr/lib/postgresql -path '*/bin/postgres' -printf '%h\n' 2>/dev/null | sort -V | tail -1)
[ -n "$SERVER" ] || fail "no PostgreSQL server: run tests/install.sh postgres"
MAJOR=$(basename "$(dirname "$SERVER")")
VERSION=$(dpkg-query -W -f '${Version}' "postgresql-$MAJOR")
READY=$PWD/target/regress/$VERSION
[ ! -e "$READY" ] || exit 0
mkdir -p "$(dirname "$READY")"

WORK=$(mktemp -d -p "$(dirname "$READY")")
trap 'rm -rf "$WORK"' EXIT
cd "$WORK"
mkdir -p sources.list.d lists/partial cache/archives/partial headers

# The machine's own sources, each with its source packages.
for file in /etc/apt/sources.list /etc/apt/sources.list.d/*.list; do
    [ ! -f "$file" ] || sed -n 's/^deb\(-src\)\? \(.*\)/deb \2\ndeb-src \2/p' "$file" | sort -u \
        >"sources.list.d/$(basename "$file" .list).list"
done
for file in /etc/apt/sources.list.d/*.sources; do
    [ ! -f "$file" ] || sed 's/^Types:.*/Types: deb deb-src/' "$file" >"sources.list.d/$(basename "$file")"
done
APT=(-qq -o "Dir::Etc::SourceList=/dev/null" -o "Dir::Etc::SourceParts=$WORK/sources.list.d"
    -o "Dir::State::Lists=$WORK/lists" -o "Dir::Cache=$WORK/cache" -o "APT::Sandbox::User=$(id -un)")

say "fetching the sources of postgresql-$MAJOR $VERSION"
apt-get "${APT[@]}" update || say "some package lists could not be fetched; trying with what came"
# Another minor version of the same branch will do where the mirrors have left the installed one behind.
for version in "$VERSION" $(apt-cache "${APT[@]}" showsrc "postgresql-$MAJOR" | sed -n 's/^Version: //p'); do
    if apt-get "${APT[@]}" source --download-only "postgresql-$MAJOR=$version" >/dev/null &&
        apt-get "${APT[@]}" download "postgresql-server-dev-$MAJOR=$version" >/dev/null; then
        break
    fi
    say "version $version can't be had"
    rm -f ./postgresql-*
done

tar --no-same-owner -xf "postgresql-${MAJOR}_"*.orig.tar.* --wildcards '*/src/test/regress'
dpkg-deb --extract "postgresql-server-dev-$MAJOR"_*.deb headers
mv "postgresql-$MAJOR".*/src/test/regress tests

# The folder that the tests load libraries from: their own, and two of the contrib modules.
mkdir tests/libraries
gcc -O1 -fPIC -shared -w -I "headers/usr/include/postgresql/$MAJOR/server" -o tests/libraries/regress.so tests/regress.c
ln -s "${SERVER%/bin}/lib/autoinc.so" "${SERVER%/bin}/lib/refint.so" tests/libraries/

mv tests "$READY"
say "ready: ${READY#"$OLDPWD/"}"
