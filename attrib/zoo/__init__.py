"""The embedded backbones: small, trained vision-language models that ship with the package."""
