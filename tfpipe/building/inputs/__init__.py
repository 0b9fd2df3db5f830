"""What a build reads: folders, tables, arrays and data sets of others, as one stream of inputs."""
