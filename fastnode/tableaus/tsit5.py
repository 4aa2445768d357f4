"""The method of Tsitouras of order 5 with an embedded one of order 4."""

from __future__ import annotations

from fractions import Fraction

from fastnode.tableaus.base import Tableau, completed, difference, exact


def _tsit5() -> Tableau:
    """Ch. Tsitouras, Runge-Kutta pairs of order 5(4) satisfying only the first column simplifying
    assumption, Comput. Math. Appl. 62 (2011), 770-775, section 3 (bhat_7 with its sign corrected).

    The pair is published as decimals only; here they have 41 digits (P. Stone's high-precision
    values), so the order conditions hold to 1e-38 and not exactly. The interpolant is given in the
    paper to 16 digits: with its exact rows 2 and 7 the other rows follow from the conditions of
    order 4, from which they were recomputed.
    """
    c5 = Fraction("0.98002554090450968572981028628702459549421")
    b = completed(
        1,
        "1/100",
        "0.47988965041449957477524953229059651991304",
        "1.37900857410374189319227482185687277075646",
        "-3.2900695154360806799010475857113638501156",
        "2.32471052409977398241535591839876579610906",
    )
    bhat = completed(
        1,
        "0.00918356554034325309677636393664531375981",
        "0.48777052842476157078556425996312282415166",
        "1.23429756693047898565510967388423765403553",
        "-2.7077123499835254548811099750593216706896",
        "1.86662841817058703575371939956621149866625",
        "1/66",
    )
    weights = (*b, Fraction(0))
    lower_powers = (
        exact(
            1,
            "-2.7637061972748258686729883630276822599318",
            "2.91325546182191265541864597871587957321216",
        ),
        exact(0, "1317/10000", "-2234/10000"),
        exact(
            0,
            "3.93029623689475151740929366945998549808780",
            "-5.9410338721315047357175892097575849165234",
        ),
        exact(
            0,
            "-12.411077166933677038730473396711854936808",
            "30.3381886302823216502300460808512009566422",
        ),
        exact(
            0,
            "37.5093134165110391789784391110647412519609",
            "-88.178904894766401077561068564974937904384",
        ),
        exact(
            0,
            "-27.896526289197287788984271020785189553308",
            "65.0918946747936715076299657151654422910537",
        ),
        exact(0, "3/2", -4),
    )
    return Tableau(
        "tsit5",
        5,
        a=(
            (),
            exact("161/1000"),
            completed(Fraction("327/1000"), "0.33548065549235698854442687425023077467512"),
            completed(
                Fraction("9/10"),
                "-6.3594484899750748431481599123838256259527",
                "4.36229543286958141101772731819088686102781",
            ),
            completed(
                c5,
                "-11.748883564062827877747170339785772961887",
                "7.49553934288983620830460478456435815565868",
                "-0.0924950663617552492565020793320719161134",
            ),
            completed(
                1,
                "-12.920969317847109291706118681783359395417",
                "8.15936789857615864318040079453925348518192",
                "-0.0715849732814009972245305425258297386912",
                "-0.0282690503940683829090030572127122414671",
            ),
            b,
        ),
        b=weights,
        error=difference(weights, bhat),
        # The fourth power is what makes the polynomial end in y_1.
        dense=tuple(
            (*row, end - sum(row, Fraction(0)))
            for row, end in zip(lower_powers, weights, strict=True)
        ),
        stability=3.5068,
    )


TSIT5 = _tsit5()
