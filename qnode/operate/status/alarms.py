"""The alarms of a site, each with its meaning."""

from enum import unique

from qnode.choices import Word


@unique
class AlarmName(Word):
    """Conditions that need attention; the names have the form of events in the log."""

    BLOCK_DISCARDED = "block.discarded", "the last block gave no key"
    CERTIFICATE_EXPIRED = "certificate.expired", "a certificate or CRL in use has expired"
    CERTIFICATE_EXPIRING = "certificate.expiring", "a certificate or CRL in use expires soon"
    COUNTS_IMPLAUSIBLE = (
        "counts.implausible",
        "the public counts of the last block cannot come from the link as it is configured",
    )
    DEVICE_FAILED = "device.failed", "a device does not work; the node opens it again"
    DEVICE_FINISHED = "device.finished", "a source of tags has ended"
    LINK_FAILED = "link.failed", "one of several links has stopped, because its store cannot be used"
    LISTENER_WAITING = "listener.waiting", "an address cannot be listened on yet; the node tries again"
    NODE_RELOAD_FAILED = "node.reload_failed", "a reload was refused; the node continues as before"
    NODE_RESTART_NEEDED = "node.restart_needed", "the file has changes that only a restart applies"
    NODE_STARTING = "node.starting", "the node is not ready yet"
    PEER_DISCONNECTED = "peer.disconnected", "there is no session with the other site"
    QUANTUM_UNLOCKED = "quantum.unlocked", "clicks are not assigned to slots"
    SAES_DIFFER = "saes.differ", "pairs of encryptors are in the file of one site only"
    STORE_DAMAGED = "store.damaged", "keys or pads could not be decrypted and were given up at both sites"
    STORE_FAILED = "store.failed", "the store cannot be written"
    STORE_STALLED = "store.stalled", "the store does not answer"
    STORE_UNCLEARED = "store.uncleared", "encrypted traces of destroyed keys stay in the store's log"
    STORE_WAITING = "store.waiting", "the store holds its keys back"
    STORE_WITNESS = "store.witness", "the witness on the other machine cannot be written"
    TAGS_MALFORMED = "tags.malformed", "time tags were dropped because of their order or channel"
    TAGS_OVERRUN = "tags.overrun", "time tags were dropped because the node had no room for them"
