"""The agent beside an encryptor: it gets keys by ETSI GS QKD 014 and has a tunnel change to them."""
