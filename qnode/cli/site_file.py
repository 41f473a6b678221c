"""The text of a site's file, with comments for its operator."""

from pathlib import Path

import tomli_w
from msgspec import Struct

from qnode.choices import Role


class SiteAnswers(Struct, frozen=True, kw_only=True):
    """What a site's operator has said.

    ``address``: of the link, where Alice listens. ``listen``: of key delivery. ``devices``: driver by name;
    none: simulated ones over the fibre at ``fibre``. ``folder``: of the site's file. ``page``: where the page
    listens; None: nowhere. ``revocation``: the lists of the authorities are there. ``state``: of the store;
    None: the service manager has folders for state, sockets and secrets.
    """

    role: Role
    kme_id: str
    peer_kme_id: str
    link: str
    address: str
    listen: str
    metrics: str
    sae_id: str
    peer_sae_id: str
    folder: Path
    fibre: str
    fibre_peer: str | None = None
    devices: dict[str, str] = {}
    page: str | None = None
    revocation: bool = False
    state: Path | None = None

    @property
    def page_is_public(self) -> bool:
        """Whether viewers of the page come from elsewhere, and so need certificates."""
        from qnode.config import PageSection
        from qnode.node.page import needs_certificates

        return self.page is not None and needs_certificates(PageSection(listen=self.page))

    def secret(self, name: str) -> Path:
        """Return where the node reads a secret from: a credential of the service, or its file."""
        if self.state is None:
            return Path(f"/run/credentials/qnode@{self.role}.service") / name
        return self.folder / self.role / f"{name.replace('-key', '')}.key"


def site_text(answers: SiteAnswers) -> str:
    """Return the file of the site, in TOML."""
    a, role, state = answers, answers.role, answers.state
    database = (Path("/var/lib/qnode") / role if state is None else state / role) / "keys.sqlite"
    anchor = (Path("/var/lib/qnode-anchor") / role if state is None else state / f"{role}-anchor") / "anchor"
    control = (Path("/run/qnode") / role if state is None else state / role) / "control.sock"
    tls = a.folder / "tls"
    simulated = "" if a.devices else "allow_simulated = true       # keys are then marked simulated\n"
    return f"""\
# The site file of {_text(a.kme_id)}, made by qnode setup. `qnode check` names its errors.
# The [link] tables must be equal at both sites. docs/configuration.md has every key with its meaning.

[node]
role = {_text(role)}
kme_id = {_text(a.kme_id)}
{simulated}
[link]
name = {_text(a.link)}

[peer]
kme_id = {_text(a.peer_kme_id)}            # pinned: the name in the peer's certificate
address = {_text(a.address)}      # Alice listens here, Bob connects to it

[peer.tls]
ca = {_text(tls / "link-ca.pem")}
certificate = {_text(tls / f"link-{role}.pem")}
key = {_text(a.secret("peer-tls-key"))}
{_crl(a, "link")}
[store]
path = {_text(database)}
anchor = {_text(anchor)}   # outside the database's folder; it detects a restored backup
store_key = {_text(a.secret("store-key"))}            # different at each site
preshared_key = {_text(a.secret("preshared-key"))}    # the same at both sites; read once, then wiped
key_lifetime_s = 604800.0
most_chunks = 1_048_576         # of 256 bits; while so many wait, new blocks are discarded

[etsi014]
listen = {_text(a.listen)}
saes_file = {_text(f"{role}-saes.toml")}    # `qnodectl saes add` writes it; those below stand here for good

[etsi014.tls]
ca = {_text(tls / "sae-ca.pem")}
certificate = {_text(tls / f"kme-{role}.pem")}
key = {_text(a.secret("etsi014-tls-key"))}
{_crl(a, "sae")}
[[etsi014.sae]]
sae_id = {_text(a.sae_id)}
kme_id = {_text(a.kme_id)}
peers = [{_text(a.peer_sae_id)}]

[[etsi014.sae]]
sae_id = {_text(a.peer_sae_id)}
kme_id = {_text(a.peer_kme_id)}
peers = [{_text(a.sae_id)}]

[operate]
control_socket = {_text(control)}
metrics_listen = {_text(a.metrics)}
allow_recording = false         # true: root and the daemon's user may record, which discloses the keys

{_page(a)}{_devices(a)}"""


def _crl(a: SiteAnswers, authority: str) -> str:
    """Return the line of the list of revoked certificates; a comment as long as there is none."""
    hidden = "" if a.revocation else "# "
    return (
        f"{hidden}crl = {_text(a.folder / 'tls' / f'{authority}-ca.crl')}    # renew it before it expires\n"
    )


def _page(a: SiteAnswers) -> str:
    if a.page is None:
        return ""
    text = f"[page]\nlisten = {_text(a.page)}\n\n"
    if a.page_is_public:
        tls = a.folder / "tls"
        text += (
            f"[page.tls]\nca = {_text(tls / 'operator-ca.pem')}\n"
            f"certificate = {_text(tls / f'page-{a.role}.pem')}\n"
            f"key = {_text(a.secret('page-tls-key'))}\n{_crl(a, 'operator')}\n"
        )
    return text


def _devices(a: SiteAnswers) -> str:
    if a.devices:
        return "\n".join(
            f"[devices.{_key(name)}]\ndriver = {_text(driver)}\n"
            "# config = { ... }             # docs/devices.md has what each driver needs\n"
            for name, driver in a.devices.items()
        )
    if a.role == "alice":
        peer = "" if a.fibre_peer is None else f", fibre_peer = {_text(a.fibre_peer)}"
        driver = '[devices.transmitter]\ndriver = "simulated-transmitter"\n'
        return f"{driver}config = {{ fibre = {_text(a.fibre)}{peer} }}\n"
    return (
        '[devices.tdc]\ndriver = "simulated-tdc"\nsilence_limit_s = 10.0\n'
        f"config = {{ fibre = {_text(a.fibre)}, receiver_p_z = 0.5 }}    # as at Alice's site\n"
    )


def _text(value: object) -> str:
    """Return a string of TOML; whatever is in it stays a string."""
    return tomli_w.dumps({"a": str(value)}).removeprefix("a = ").rstrip("\n")


def _key(name: str) -> str:
    return tomli_w.dumps({name: 1}).removesuffix(" = 1\n")
