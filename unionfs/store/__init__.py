"""What is kept: blobs, layers, images, containers, tags; and how it gets there and goes without anything lost."""
