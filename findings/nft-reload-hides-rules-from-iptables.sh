#!/usr/bin/env bash
# iptables can't read its own rule any more after nft has listed the ruleset and loaded it again from that listing.
# Needs Debian 12 with apt, and root (its own network namespace).
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
chmod 755 .
apt-get download -qq iptables=1.8.9-2 libxtables12=1.8.9-2 nftables=1.0.6-2+deb12u2 libnftables1=1.0.6-2+deb12u2 \
    libnftnl11=1.2.4-2 libmnl0 libjansson4 libedit2 libbsd0 libmd0 libgmp10 libtinfo6 2> /dev/null
for package in *.deb; do dpkg --extract "$package" root; done
libraries=$(find "$work/root" -name 'lib*.so*' -not -path '*/xtables/*' -printf '%h\n' | sort -u | paste -sd:)
XTABLES_LIBDIR=$(dirname "$(find "$work/root" -name libxt_owner.so)")
export XTABLES_LIBDIR LD_LIBRARY_PATH=$libraries PATH="$work/root/usr/sbin:$PATH"
rules() { iptables-nft -t nat -S OUTPUT 2>&1 | grep -E '^-A|failed' || true; }
export -f rules
iptables-nft --version
nft --version
seen=$(unshare --net bash -euc '
    iptables-nft -t nat -A OUTPUT -p tcp -m owner --uid-owner 1337 -m comment --comment proxy -j RETURN
    rules
    nft list ruleset > listing.txt 2> /dev/null
    nft flush ruleset
    nft --file listing.txt
    nft list chain ip nat OUTPUT 2> /dev/null | grep -o "skuid.*"
    rules')
echo "nft lists a match of iptables as the native expression with the same meaning, without its comment; iptables can't parse that."
echo "seen: $seen"
[ "$seen" = "-A OUTPUT -p tcp -m owner --uid-owner 1337 -m comment --comment proxy -j RETURN
skuid 1337 counter packets 0 bytes 0 return
iptables v1.8.9 (nf_tables): Parsing nftables rule failed" ]
