"""msp_lens."""
