"""One name for each column, whatever file or client it comes from."""

import pytest

from fraudlib import schema

TLC_GREEN = (
    "VendorID lpep_pickup_datetime lpep_dropoff_datetime store_and_fwd_flag RatecodeID PULocationID DOLocationID "
    "passenger_count trip_distance fare_amount extra mta_tax tip_amount tolls_amount ehail_fee improvement_surcharge "
    "total_amount payment_type trip_type congestion_surcharge cbd_congestion_fee"
)
TLC_YELLOW = (
    "VendorID tpep_pickup_datetime tpep_dropoff_datetime passenger_count trip_distance RatecodeID store_and_fwd_flag "
    "PULocationID DOLocationID payment_type fare_amount extra mta_tax tip_amount tolls_amount improvement_surcharge "
    "total_amount congestion_surcharge Airport_fee cbd_congestion_fee"
)


@pytest.mark.parametrize("header", [TLC_GREEN, TLC_YELLOW], ids=["green", "yellow"])
def test_every_tlc_column_has_one_canonical_name(header: str) -> None:
    """All columns of the TLC's files are known, and no two of a file fall together."""
    names = [schema.canonical_name(column) for column in header.split()]
    assert None not in names
    assert len(set(names)) == len(names)
    assert set(schema.REQUIRED_COLUMNS) <= set(names)


@pytest.mark.parametrize("column", schema.COLUMNS, ids=lambda column: column.name)
def test_spellings_lead_back_to_their_column(column: schema.Column) -> None:
    """The name, its aliases, and both in other cases are the same column."""
    for spelling in (column.name, *column.aliases):
        for variant in (spelling, spelling.upper(), spelling.replace("_", ""), spelling.title()):
            assert schema.canonical_name(variant) == column.name


def test_no_spelling_belongs_to_two_columns() -> None:
    """Aliases are unique once case and underscores are gone."""
    squeezed = [{s.replace("_", "").lower() for s in (c.name, *c.aliases)} for c in schema.COLUMNS]
    spellings = [spelling for column in squeezed for spelling in column]
    assert len(spellings) == len(set(spellings))


@pytest.mark.parametrize(
    ("column", "service"), [("lpep_pickup_datetime", "green"), ("tpepDropoffDateTime", "yellow"), ("pickup", None)]
)
def test_time_columns_give_the_service_away(column: str, service: str | None) -> None:
    """Green files say lpep, yellow ones tpep; other spellings say nothing."""
    assert schema.service_of(column) == service


def test_unknown_columns_stay_unknown() -> None:
    """A column that the TLC does not have gets no name by resemblance."""
    assert schema.canonical_name("surge_multiplier") is None


def test_topics_are_distinct() -> None:
    """No two kinds of message share a topic."""
    assert len(set(schema.TOPICS)) == len(schema.TOPICS) == 5
