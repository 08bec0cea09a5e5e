"""From a listing of images to the batches of each worker.

dataset       the values: images, manifest, pack, split
index         lists the images of a data source, labels them, and splits them
decode        one image file -> pixels
pack, shards  packed images in storage; the format of their files and the local cache
order         the order of the images in each epoch
augmentation  random changes of the images of a batch
loader        the batches of one worker
"""
