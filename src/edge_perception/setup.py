"""The ament_python build of edge_perception; colcon and ROS 2 read package.xml beside it."""

from glob import glob

from setuptools import find_packages, setup

NAME = 'edge_perception'
NODES = ('source', 'detector', 'tracker', 'metrics', 'visualizer', 'gateway', 'perception')

setup(
    name=NAME,
    version='0.1.0',
    packages=find_packages(include=[NAME, f'{NAME}.*']),
    # The pages that the gateway serves.
    package_data={f'{NAME}.api': ['*.html']},
    # launch, config, models and test are links to the workspace's top level: paths that climb out
    # of the package do not work in data_files.
    data_files=[
        ('share/ament_index/resource_index/packages', [f'resource/{NAME}']),
        (f'share/{NAME}', ['package.xml']),
        (f'share/{NAME}/launch', glob('launch/*.launch.py')),
        (f'share/{NAME}/config', glob('config/*.*')),
        (f'share/{NAME}/models', glob('models/*.md') + glob('models/person_*.onnx')),
        # What `demo` runs on when it is given no source.
        (f'share/{NAME}/data', ['test/data/pedestrians.mp4', 'test/data/README.md']),
    ],
    install_requires=['setuptools'],
    extras_require={'test': ['pytest']},
    zip_safe=False,
    maintainer='Edge Perception contributors',
    maintainer_email='edge-perception@example.org',
    description='Camera, video or bag in, tracked vision_msgs detections out.',
    license='AGPL-3.0-only',
    entry_points={
        'console_scripts': [f'{name} = {NAME}.nodes.{name}:main' for name in (*NODES, 'demo')]
    },
)
