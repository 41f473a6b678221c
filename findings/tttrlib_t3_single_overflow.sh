#!/usr/bin/env bash
# tttrlib 0.26.2 loses a wrap of the sync counter for each T3 overflow record with the count 0.
#
# In T3 files of HydraHarp 2, TimeHarp 260 N and TimeHarp 260 P an overflow record carries the number of
# wraps of the 10-bit sync counter; 0 stands for one wrap, as devices with older firmware write it. tttrlib
# adds 0 wraps instead, without a message, so every later photon comes 1024 syncs early for each such record.
# Counts of 1 and more are right. ptufile 2026.2.6 reads all of them right.
#
# Seen 2026-11-30: three files of three photons in syncs 5, 7 (after an overflow of count 0) and 9 (after one
# of count 3) give [5, 7, 3081]; ptufile gives [5, 1031, 4105].
#
# Needs python3 with venv, and the package index. Fails when the behaviour changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet tttrlib==0.26.2 ptufile==2026.2.6
cd "$folder"
cat > look.py <<'PYTHON'
import struct

import ptufile
import tttrlib

INTEGER, REAL, TEXT, EMPTY = 0x10000008, 0x20000008, 0x4001FFFF, 0xFFFF0008


def entry(name, kind, value=bytes(8), text=b""):
    return name.encode().ljust(32, b"\0") + struct.pack("<iI", -1, kind) + value + text


def integer(name, number):
    return entry(name, INTEGER, struct.pack("<q", number))


def header(record_type, n_records):
    maker = b"test".ljust(8, b"\0")
    return b"".join(
        [
            b"PQTTTR\0\0",
            b"1.0.00\0\0",
            entry("CreatorSW_Name", TEXT, struct.pack("<q", len(maker)), maker),
            integer("TTResultFormat_TTTRRecType", record_type),
            integer("TTResultFormat_BitsPerRecord", 32),
            integer("Measurement_Mode", 3),
            integer("Measurement_SubMode", 0),
            entry("MeasDesc_GlobalResolution", REAL, struct.pack("<d", 1e-7)),
            entry("MeasDesc_Resolution", REAL, struct.pack("<d", 1e-12)),
            integer("TTResult_SyncRate", 10_000_000),
            integer("TTResult_NumberOfRecords", n_records),
            integer("ImgHdr_Dimensions", 0),
            entry("Header_End", EMPTY),
        ]
    )


def photon(delay, sync):
    return delay << 10 | sync


def overflow(count):
    return 1 << 31 | 63 << 25 | count


records = [photon(100, 5), overflow(0), photon(200, 7), overflow(3), photon(300, 9)]
right = [5, 1024 + 7, 4 * 1024 + 9]
same_as_seen = True
for device, record_type in (
    ("HydraHarp 2", 0x01010304),
    ("TimeHarp 260 N", 0x00010305),
    ("TimeHarp 260 P", 0x00010306),
):
    with open("photons.ptu", "wb") as file:
        file.write(header(record_type, len(records)) + struct.pack("<5I", *records))
    found = [int(sync) for sync in tttrlib.TTTR("photons.ptu", "PTU").macro_times]
    with ptufile.PtuFile("photons.ptu") as file:
        rows = file.decode_records()
    other = [int(row["time"]) for row in rows if row["channel"] >= 0]
    print(f"{device}: right {right}, tttrlib {found}, ptufile {other}")
    same_as_seen &= found == [5, 7, 3 * 1024 + 9] and other == right
raise SystemExit(not same_as_seen)
PYTHON
venv/bin/python look.py
