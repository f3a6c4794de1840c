from __future__ import annotations

import pytest

from edge_perception.detection import LabelsError
from edge_perception.detection.labels import (
    labels_from_metadata,
    load_labels,
    resolve_labels,
    wanted_class_ids,
)


@pytest.mark.parametrize(
    'text',
    [
        "{0: 'person', 1: 'traffic light'}",
        "['person', 'traffic light']",
        "{'1': 'traffic light', '0': 'person'}",
    ],
)
def test_names_in_metadata_are_python_literals(text):
    names = labels_from_metadata({'names': text})
    assert names == {0: 'person', 1: 'traffic light'}
    assert list(names) == [0, 1]


def test_model_without_names_has_none():
    assert labels_from_metadata({'stride': '32'}) is None


@pytest.mark.parametrize(
    'text',
    [
        pytest.param("{0: 'person'", id='cut off'),
        pytest.param('__import__("os").getcwd()', id='code is not run'),
        pytest.param("'person'", id='a word is no list'),
        pytest.param("{1: 'person'}", id='does not begin at 0'),
        pytest.param("{0: 'a', 2: 'b'}", id='a gap'),
        pytest.param('{}', id='empty'),
    ],
)
def test_malformed_names_are_an_error(text):
    with pytest.raises(LabelsError, match='class names in the model'):
        labels_from_metadata({'names': text})


def test_text_file_has_one_name_a_line(tmp_path):
    path = tmp_path / 'labels.txt'
    path.write_text('person\n traffic light \n\n', encoding='utf-8')
    assert load_labels(path) == {0: 'person', 1: 'traffic light'}


@pytest.mark.parametrize('names', ['names: [cat, dog]', 'names: {0: cat, 1: dog}', '[cat, dog]'])
def test_yaml_of_a_dataset(tmp_path, names):
    path = tmp_path / 'data.yaml'
    path.write_text(names)
    assert load_labels(str(path)) == {0: 'cat', 1: 'dog'}


def test_list_and_dictionary():
    assert load_labels(['cat', 'dog']) == load_labels({1: 'dog', 0: 'cat'})


@pytest.mark.parametrize(
    ('name', 'content', 'message'),
    [
        ('absent.txt', None, 'cannot read the labels file'),
        ('empty.txt', b'', 'no class names'),
        ('binary.txt', b'\xff\xfe\x80', 'cannot read the labels file'),
        ('broken.yaml', b'names: [', 'cannot read the labels file'),
        ('other.yaml', b'path: x', 'no class names'),
    ],
)
def test_unusable_labels_file_is_one_line(tmp_path, name, content, message):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(LabelsError, match=message) as caught:
        load_labels(path)
    assert name in str(caught.value)
    assert '\n' not in str(caught.value)


def test_what_the_user_gives_wins_over_the_model():
    assert resolve_labels({'names': "['a']"}, ['b']) == {0: 'b'}


def test_missing_labels_name_the_remedy():
    with pytest.raises(LabelsError, match='labels=FILE'):
        resolve_labels({}, None)


def test_wanted_names_become_sorted_ids():
    names = {0: 'person', 1: 'car', 2: 'bus'}
    assert wanted_class_ids(names, ['bus', 'person', 'bus']).tolist() == [0, 2]
    assert wanted_class_ids(names, []) is None
    assert wanted_class_ids(names, None) is None


def test_unknown_class_names_those_there_are():
    with pytest.raises(LabelsError, match='unknown class tram: the model has person, car'):
        wanted_class_ids({0: 'person', 1: 'car'}, ['car', 'tram'])
