"""Certificates: a lab's authorities, certificates by role, requests, revocation, and their faults."""
