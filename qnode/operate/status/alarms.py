"""The alarms of a site, each with its meaning."""

from enum import unique

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
    STORE_WITNESS = "store.witness", "the witness on the other machine cannot be written"
    TAGS_MALFORMED = "tags.malformed", "time tags were dropped because of their order or channel"
    TAGS_OVERRUN = "tags.overrun", "time tags were dropped because the node had no room for them"
