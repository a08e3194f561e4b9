"""What drew the sample style pictures: `night.webp` and `facets.webp` of `jaxstyle/images/`."""
