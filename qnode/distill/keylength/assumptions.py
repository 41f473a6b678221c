"""The assumptions of the security of a key: one enum, each with its text."""

from collections.abc import Mapping
from enum import Enum, unique


@unique
class Assumption(Enum):
    """An assumption behind a key length. The name is stable, the value is the text for people.

    A name in braces in the text is a parameter: `stated` fills it in.
    """

    # Of all estimators.
    INDEPENDENT_DEAD_TIME = "independent dead time: basis-independent detection is not enforced"
    ACTIVE_CHOICE = (
        "passive basis choice: the proof assumes an active choice, cross clicks are not in the bound"
    )
    NO_EFFICIENCY_MISMATCH = "detection-efficiency mismatch is not bounded"
    RANDOM_PHASES = (
        "phases are random from qubit to qubit; intensities and states do not depend on earlier ones"
    )
    NO_DETECTOR_MEMORY = "detectors have no memory (afterpulses, dead time) that the adversary can use"
    LATE_ANNOUNCEMENT = (
        "the sampling argument requires Bob's announcements after Alice's last qubit; "
        "Bob announces slots and arms while Alice sends"
    )
    EXACT_INTENSITIES = "the intensities and their probabilities are taken as exact"
    CALIBRATED_INTENSITIES = (
        "the intensities lie within {signal:.3%} (signal) and {decoy:.3%} (decoy) of their calibrated "
        "values, least key at {worst_signal:.6g} and {worst_decoy:.6g}; their probabilities are taken "
        "as exact"
    )
    ONE_X_DETECTOR = "one X detector and three states: not proven against coherent attacks"
    ASYMMETRY_OF_ALL_PHOTONS = "asymmetry term: all photon numbers together, not separated for one photon"
    EQUAL_ARM_EFFICIENCY = (
        "asymmetry term: both arms are as efficient for every state, up to one common factor"
    )
    VISIBILITY_ONLY = "visibility only: a channel that treats |+> and |-> differently is not seen"
    UNUSUAL_X_SCALE = "x_scale is {x_scale:g}, while 2 p_X / p_Z is {expected:g}"
    NO_EMPTY_CREDIT = "no entropy is credited for empty qubits"
    # Of rusca2018.
    FIXED_LENGTH = "published fixed-length claim, used with a length computed from the observed counts"
    RUSCA_CONSTANTS = "vacuum rule {vacuum_rule}, constant {terms} in gamma and in the key length"
    NO_EMPTY_CREDIT_PUBLIC_ERRORS = (
        "no entropy is credited for empty qubits: the positions of errors are public"
    )
    EMPTY_CREDIT = (
        "the entropy of empty qubits is credited: it is there if nobody knows the positions of errors"
    )
    EXACT_TAIL = "few X errors: exact hypergeometric tail at (eps_sec/{terms})^2 in the place of gamma"
    APPROXIMATE_GAMMA = "gamma is an approximation whose failure probability is somewhat above its target"
    # Of eur.
    ENTROPIC_UNCERTAINTY = "entropic uncertainty, {statistics} statistics, vacuum rule {vacuum_rule}"
    # Of wiesemann2024.
    OBSERVED_THRESHOLDS = (
        "an estimate: the theorem wants thresholds fixed in advance, observed counts are inserted"
    )
    COMPOSITION = "the composition of the {terms} equal terms is taken over, not derived"
    # Of three_state.
    MARTINGALE = (
        "three_state: entropic uncertainty for the phase error of one photon; deviations by a martingale, so "
        "that coherent attacks and announcements during the block are covered"
    )
    FIXED_CHANCE_OF_ARM = (
        "passive basis choice: each qubit's signal is taken to go to one of the arms by a fixed chance that "
        "is the same for all light; several photons at Bob and cross clicks are not in the bound"
    )
    NO_BOUNDARY_INTERFERENCE = "boundary slots: light of neighbouring qubits does not interfere there"
    EQUAL_GATES = (
        "central and boundary gates accept equal shares of light, and noise divides between the arms as light"
    )
    EXACT_STATES = "the three states are exact and of equal intensity"
    CHANCE_LOSSES = "bits that leave the key for a boundary click beside them leave it by chance"
    # Of the node: what the protocol, the receiver and a recording of the block add.
    COMPUTATIONAL_KEY_CONTROL = (
        "key control (assignment of keys to encryptors) is authenticated by AES-256-GMAC: computational"
    )
    PUBLIC_ERROR_POSITIONS = (
        "positions of corrected errors are public: only Alice's parities are counted as leak"
    )
    UNCHECKED_JOINT_DEAD_TIME = (
        "joint dead time: believed, as receiver.dead_time_s is not declared to check tags against"
    )
    DETECTORS_COUNT_PHOTONS = (
        "detectors count photons: bright light that fakes every count for less than {share:.0%} of the block "
        "is not told by missing cross clicks"
    )
    RECORDED = "tags or symbols of this block were recorded: whoever reads the recording knows its key"

    def stated(self, **parameters: object) -> dict["Assumption", str]:
        """Return the assumption with its text.

        Raises:
            KeyError: a parameter of the text is missing.
        """
        return {self: self.value.format(**parameters)}


# The assumptions behind one key length with their texts, in the order in which they are shown.
Assumptions = Mapping[Assumption, str]


def stated(*assumptions: Assumption) -> dict[Assumption, str]:
    """Return assumptions without parameters, with their texts."""
    return {one: one.value.format() for one in assumptions}
