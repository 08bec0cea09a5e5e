"""From a listing of images to the batches of each worker.

dataset       the values: images, manifest, pack, split
sources       the stores of the images and of the labels file
labels        the labels file
index         lists and labels the images of the sources
junk          files that are no images for their names
decode        one image file -> pixels; jpeg_file, jpeg_scan, image_file and tiff_file read files without metadata
decoder       decodes in a process that may die
pack, shards  packed images in storage; the format of their files and the local cache
duplicates    copies and near copies among the packed images
split         the split into training, validation and test
order         the order of the images in each epoch
augmentation  random changes of the images of a batch
loader        the batches of one worker
"""
