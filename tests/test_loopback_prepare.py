"""The folder of a loopback run: what an interrupted run left behind is completed."""

from pathlib import Path

import pytest
from cryptography import x509

import qnode.loopback.prepare
from qnode import secret_files
from qnode.loopback.prepare import LoopbackConfig, Prepared, Staging, prepare


def check_certificates(prepared: Prepared) -> None:
    """Verify that the folder's authority has issued the certificate of each encryptor."""
    authority = x509.load_pem_x509_certificate(Path(prepared.endpoints.ca).read_bytes())
    for link in prepared.endpoints.links:
        for sae in link.saes:
            own = x509.load_pem_x509_certificate(Path(sae.cert).read_bytes())
            own.verify_directly_issued_by(authority)


def test_certificates_for_more_links_are_made_anew_after_an_interruption(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_certificates(prepare(tmp_path, LoopbackConfig(), Staging()))
    write = secret_files.write_secret

    def interrupted(path: Path, content: bytes) -> None:
        if path.name == "demo-bob.pem":
            raise KeyboardInterrupt
        write(path, content)

    with monkeypatch.context() as patched:
        patched.setattr(qnode.loopback.prepare, "write_secret", interrupted)
        with pytest.raises(KeyboardInterrupt):
            prepare(tmp_path, LoopbackConfig(), Staging(links=3))
    check_certificates(prepare(tmp_path, LoopbackConfig(), Staging(links=3)))
    check_certificates(prepare(tmp_path, LoopbackConfig(), Staging()))
