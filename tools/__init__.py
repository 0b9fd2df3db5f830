"""The commands: flags in, one library call, one printed summary. Installed as `tfpipe.tools`."""
