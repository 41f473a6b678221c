"""The alarms of a site, each with its meaning."""

from enum import unique
from typing import Final

from qnode.choices import Word


@unique
class AlarmName(Word):
    """Conditions that need attention; the names have the form of events in the log."""

    BLOCK_DISCARDED = "block.discarded", "the last block gave no key"
    CALIBRATION_FAILED = "calibration.failed", "a controller does not hold what it controls"
    CERTIFICATE_EXPIRED = "certificate.expired", "a certificate or CRL in use has expired"
    CERTIFICATE_EXPIRING = "certificate.expiring", "a certificate or CRL in use expires soon"
    COUNTS_IMPLAUSIBLE = (
        "counts.implausible",
        "the public counts of the last block do not fit the configured link",
    )
    DEVICE_FAILED = "device.failed", "a device does not work; the node opens it again"
    DEVICE_FINISHED = "device.finished", "a source of tags has ended"
    LINK_FAILED = "link.failed", "one of several links has stopped because its store cannot be used"
    LISTENER_WAITING = "listener.waiting", "the node cannot listen on an address yet; it tries again"
    MONITOR_TRIPPED = (
        "monitor.tripped",
        "a monitored reading of a device is outside its limits or missing; blocks are discarded",
    )
    NODE_RELOAD_FAILED = "node.reload_failed", "a reload was refused; the node continues as before"
    NODE_RESTART_NEEDED = "node.restart_needed", "the configuration has changes that only a restart applies"
    NODE_STARTING = "node.starting", "the node is not ready yet"
    PEER_DISCONNECTED = "peer.disconnected", "there is no session with the other site"
    QUANTUM_UNLOCKED = "quantum.unlocked", "clicks are not assigned to slots"
    RANDOMNESS_FAILED = (
        "randomness.failed",
        "the random number generator failed a health test; it is not used until the daemon starts again",
    )
    SAES_DIFFER = "saes.differ", "some pairs of encryptors are in the configuration of one site only"
    STORE_DAMAGED = "store.damaged", "keys or pads could not be decrypted; both sites discarded them"
    STORE_FAILED = "store.failed", "the store cannot be written"
    STORE_STALLED = "store.stalled", "the store does not answer"
    STORE_UNCLEARED = (
        "store.uncleared",
        "encrypted remains of destroyed keys are still in the log of the store",
    )
    STORE_WAITING = "store.waiting", "the store does not release its keys yet"
    AUDIT_DAMAGED = "audit.damaged", "the record of deliveries does not continue from the anchor"
    STORE_WITNESS = "store.witness", "the witness on the other machine cannot be written"
    TAGS_MALFORMED = "tags.malformed", "time tags were dropped because of their order or channel"
    TAGS_OVERRUN = "tags.overrun", "time tags were dropped because the node had no room for them"
    TELEMETRY_AWAY = "telemetry.away", "the database of `[telemetry]` takes no samples; they wait on disk"
    TELEMETRY_FAILED = (
        "telemetry.failed",
        "samples for the database of `[telemetry]` cannot be written to disk",
    )
    TELEMETRY_LOST = "telemetry.lost", "samples for the database of `[telemetry]` were lost or refused"


# What to do about an alarm. An operator reads it beside the alarm's own text, which has the details.
TO_DO: Final = {
    AlarmName.BLOCK_DISCARDED: "Look at the reason in qnodectl blocks. One block now and then is no fault.",
    AlarmName.CALIBRATION_FAILED: (
        "See qnodectl status for its reason, then the device; hold it with qnodectl calibrate."
    ),
    AlarmName.CERTIFICATE_EXPIRED: "Renew the file, run qnode check, reload the daemon.",
    AlarmName.CERTIFICATE_EXPIRING: "Renew the file before that day, run qnode check, reload the daemon.",
    AlarmName.COUNTS_IMPLAUSIBLE: (
        "See qnodectl checks. Either [link] is not this hardware, or somebody is on the fibre."
    ),
    AlarmName.AUDIT_DAMAGED: (
        "Run qnodectl audit verify, and export what is left. Find out whether an old database was put back, "
        "or somebody changed it."
    ),
    AlarmName.DEVICE_FAILED: (
        "See qnodectl devices with its name: its last error and its last bytes. Look at cable and power."
    ),
    AlarmName.DEVICE_FINISHED: "The recording has ended. Restart the daemon to play it again.",
    AlarmName.LINK_FAILED: "Mend the store that the text names, then restart the daemon.",
    AlarmName.LISTENER_WAITING: (
        "Free the address, or correct it in the site's file and restart. The node tries again by itself."
    ),
    AlarmName.MONITOR_TRIPPED: (
        "See qnodectl checks for the reading and its limits. Look at that device, and at who can reach it."
    ),
    AlarmName.NODE_RELOAD_FAILED: "Run qnode check on the site's file, correct what it names, reload again.",
    AlarmName.NODE_RESTART_NEEDED: (
        "Restart the daemon at a quiet hour, or set the named keys back and reload."
    ),
    AlarmName.NODE_STARTING: "Wait. A first start compiles for a minute; run qnode warm before it.",
    AlarmName.PEER_DISCONNECTED: (
        "Look at the other site and at the network between the sites. The node connects by itself."
    ),
    AlarmName.QUANTUM_UNLOCKED: (
        "Look at the fibre, at the laser and at the detectors: qnodectl align at Bob's site."
    ),
    AlarmName.RANDOMNESS_FAILED: (
        "Replace the random number generator, or leave out [randomness], then restart the daemon."
    ),
    AlarmName.SAES_DIFFER: "Enter each pair of encryptors in the files of both sites and reload both.",
    AlarmName.STORE_DAMAGED: (
        "Test the disk and the memory of this machine. Keys made from now on are not affected."
    ),
    AlarmName.STORE_FAILED: (
        "Look at the disk, or the database's server: is it full, read-only, broken or away? The node "
        "continues once it can write."
    ),
    AlarmName.STORE_STALLED: "Look at the disk, or at the database's server and the network to it.",
    AlarmName.STORE_UNCLEARED: "End other programs that have the database open.",
    AlarmName.STORE_WAITING: (
        "Let the peer connect. If it was restored from a backup as well, use qnodectl restore at both sites."
    ),
    AlarmName.STORE_WITNESS: "Look at the mount of the other machine.",
    AlarmName.TAGS_MALFORMED: "Compare order_window_ps and the channels with the time tagger.",
    AlarmName.TAGS_OVERRUN: "Give this machine more processor time, or let fewer counts in.",
    AlarmName.TELEMETRY_AWAY: (
        "Look at the database and the way to it: 401 or 403 is the user. Samples wait on disk meanwhile."
    ),
    AlarmName.TELEMETRY_FAILED: "Look at the disk and at the owner of telemetry.spool; one daemon a folder.",
    AlarmName.TELEMETRY_LOST: "Give telemetry.spool_bytes more room, or telemetry.interval_s more time.",
}


def to_do(name: str) -> str:
    """Return what to do about the alarm of this name; empty if it is not known."""
    return TO_DO.get(AlarmName(name), "") if name in set(AlarmName) else ""
