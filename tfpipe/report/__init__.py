"""What people look at: pieces of HTML and Markdown, figures, fonts, contact sheets."""
