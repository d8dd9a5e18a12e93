"""Pictures and tables: functions from tensors and numbers to images, figures and rows. Nothing here knows a task."""
