"""Key streams to applications by ETSI GS QKD 004 V2.1.1: OPEN_CONNECT, GET_KEY, CLOSE."""
