import importlib.util

import torchvision_schemas

if importlib.util.find_spec("torchvision") is not None:
    torchvision_schemas.define()
