"""Keys of a store on their way to an encryptor."""

from qnode.delivery.supply import Key
from qnode.keys import BlockRecord, StoredKey


def for_delivery(keys: list[StoredKey]) -> list[Key]:
    """Return keys with the facts of their blocks that an encryptor is told."""
    result: list[Key] = []
    record: BlockRecord | None = None
    for key in keys:
        if key.record is not record:  # keys of one block have the same record
            record = key.record
            extension = {
                "simulated": record.simulated,
                "estimator": record.estimator,
                "eps_sec": record.eps_sec,
            }
            if record.recorded:  # the recording discloses the key
                extension["recorded"] = True
        result.append(Key(key.key_id, key.key, extension))
    return result
