"""The tutorial as commands: chapters, a section for each slide, and what came out when they were run."""
