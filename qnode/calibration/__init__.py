"""Controllers that keep the settings of a link: pure, an observation in, a setting out."""
