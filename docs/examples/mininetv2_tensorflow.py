"""A public TensorFlow checkpoint of MiniNetV2 as a .safetensors file that `--set student.weights=FILE` takes.

    git clone https://github.com/Shathe/MiniNet-v2
    pip install tensorflow
    cp MiniNet-v2/weights/Mininetv2/cityscapes_512x256/modellast.ckpt* .
    python docs/examples/mininetv2_tensorflow.py modellast.ckpt mininetv2.safetensors

All it does is copy the variables under their names; mtkd_cache/models/mininetv2.py knows which is which.
"""

import sys

import tensorflow
from safetensors.numpy import save_file

checkpoint, out = sys.argv[1:]
reader = tensorflow.train.load_checkpoint(checkpoint)
save_file({name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}, out)
