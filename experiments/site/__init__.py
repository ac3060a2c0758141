"""The site: `make site` builds it from docs/, the pages at the root and in examples/, and pages made of the code."""
