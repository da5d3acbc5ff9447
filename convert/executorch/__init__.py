"""ExecuTorch programs: the targets behind its delegates, what each delegate refuses, and workarounds."""
