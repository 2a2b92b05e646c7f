#!/usr/bin/env bash
# promtool check metrics refuses valid OpenMetrics, the format that Prometheus itself asks for when it scrapes.
# Needs Debian 12 with apt.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
chmod 755 .
apt-get download -qq prometheus=2.42.0+ds-5+deb12u1 2> /dev/null
dpkg --extract prometheus_*.deb root
promtool=root/usr/bin/promtool
"$promtool" --version | head -n 1
# The example of an info metric in the OpenMetrics specification, 1.0, shortened.
seen=$(printf '# TYPE foo info\nfoo_info{name="pretty name",version="8.2.7"} 1\n# EOF\n' | "$promtool" check metrics 2>&1) && code=0 || code=$?
echo "promtool check metrics parses only the text format 0.0.4, so metrics must be requested with Accept: text/plain to check them."
echo "seen: $seen (exit code $code)"
[ "$code" = 1 ] && [ "$seen" = 'error while linting: text format parsing error in line 1: unknown metric type "info"' ]
