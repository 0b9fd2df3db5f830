"""What every part of tfpipe uses and what knows nothing of images: files, errors, arguments, progress, worker processes."""
