#!/usr/bin/env bash
# snAPI 1.2.5, PicoQuant's Python package, writes its log into the home folder and onto standard output.
#
# Making an snAPI object, without a device and without any setting about logs, creates $HOME/Data/PicoQuant/Logs
# with two log files, and prints dozens of coloured lines. The native library writes them straight to file
# descriptor 1: replacing sys.stdout does not catch them, so a program that speaks a protocol on its standard
# output sends the lines to its peer. Under a service manager that hides home folders nothing can be written,
# and the library says so on standard output only.
#
# Seen 2026-11-30: two files in Data/PicoQuant/Logs, more than ten lines on descriptor 1, none in sys.stdout.
#
# Needs python3 with venv, and the package index. Fails when the behaviour changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet snapi==1.2.5
mkdir "$folder/home"
cat > "$folder/look.py" <<'PYTHON'
import io
import sys

sys.stdout = caught = io.StringIO()
from snAPI.Main import snAPI

snAPI()
print(f"lines in sys.stdout: {len(caught.getvalue().splitlines())}", file=sys.stderr)
raise SystemExit(bool(caught.getvalue()))
PYTHON
HOME="$folder/home" "$folder/venv/bin/python" "$folder/look.py" > "$folder/descriptor_1"
lines=$(wc -l < "$folder/descriptor_1")
files=$(find "$folder/home/Data/PicoQuant/Logs" -type f | wc -l)
echo "lines on descriptor 1: $lines; log files in the home folder: $files"
[ "$lines" -gt 10 ] && [ "$files" -eq 2 ]
