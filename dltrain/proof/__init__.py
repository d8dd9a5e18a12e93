"""Shows that a run can be repeated: killed and resumed, given again step by step, compared with what it recorded."""
