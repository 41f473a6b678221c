"""Key delivery to encryptors, whatever the interface through which they ask.

`Delivery` implements the calls: it checks them against a directory of encryptors and against limits, and
answers from a `KeySupply`. Each interface (`qnode.etsi014`, ...) is an application of the same `Delivery`, so
that a key is delivered once, whatever the interface.
"""

from qnode.delivery.calls import ApiLimits, Delivery, Given, KeyRequest, Stock, Usage
from qnode.delivery.directory import SaeDirectory, SaeEntry
from qnode.delivery.key_rate import KeyRate, counted_keys
from qnode.delivery.refusal import Refusal
from qnode.delivery.stored import for_delivery
from qnode.delivery.supply import Key, KeySupply
from qnode.delivery.unsent import Unsent

__all__ = [
    "ApiLimits",
    "Delivery",
    "Given",
    "Key",
    "KeyRate",
    "KeyRequest",
    "KeySupply",
    "Refusal",
    "SaeDirectory",
    "SaeEntry",
    "Stock",
    "Unsent",
    "Usage",
    "counted_keys",
    "for_delivery",
]
