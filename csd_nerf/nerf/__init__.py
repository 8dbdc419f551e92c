"""The nerfstudio plugin: scenes that can be edited, and the edit itself."""
