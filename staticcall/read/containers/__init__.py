"""What ELF files come in: compressed files, boot images, packages and archives; each told by its content."""
