"""Run on demand, above the session: verify, audits, the doctor."""
