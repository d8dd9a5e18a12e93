"""The rows of the fault matrix: each promise with a test, and a control that fails where the guard is off."""
