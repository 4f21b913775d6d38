//! What the real parser made of expressions; what it means for any; and that no input does harm.

use std::collections::BTreeMap;

use proptest::prelude::*;
use serde::Deserialize;
use serde_json::Value;

use super::*;
use crate::record::PropertiesBuf;

#[derive(Deserialize)]
struct Case {
    expr: String,
    props: BTreeMap<String, String>,
    matched: bool,
    value: Option<Value>,
    error: Option<String>,
}

fn cases() -> Vec<Case> {
    let text = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/vectors/filter_sql92.json"));
    serde_json::from_str(text).unwrap()
}

fn properties(all: &[(&str, &str)]) -> PropertiesBuf {
    let mut properties = PropertiesBuf::new();
    for (name, value) in all {
        properties.push(name, value);
    }
    properties
}

fn matches(expression: &str, all: &[(&str, &str)]) -> bool {
    Sql::parse(expression).unwrap().matches(properties(all).view())
}

fn refused(expression: &str) -> String {
    match Sql::parse(expression) {
        Err(error) => error.to_string(),
        Ok(sql) => panic!("{expression:?} is no expression, and was read as {sql:?}"),
    }
}

#[test]
fn expressions_mean_what_the_real_parser_makes_of_them() {
    let cases = cases();
    assert!(cases.len() > 160, "found {}", cases.len());
    for Case { expr, props, matched, value, error } in cases {
        let what = format!("{expr:?} for {props:?}");
        let parsed = Sql::parse(&expr);
        let stage = error.as_deref().and_then(|error| error.split(':').next());
        if stage == Some("compile") {
            assert!(parsed.is_err(), "{what}: expected an error, found {parsed:?}");
            continue;
        }
        let sql = parsed.unwrap_or_else(|error| panic!("{what}: {error}"));
        let found = sql.evaluate(props.iter().map(|(name, value)| (&**name, &**value)));
        assert_eq!(found == Ok(Some(true)), matched, "{what}: found {found:?}");
        if stage == Some("eval") {
            assert!(found.is_err(), "{what}: expected an error, found {found:?}");
        } else {
            assert_eq!(found, Ok(value.and_then(|value| value.as_bool())), "{what}");
        }
    }
}

#[test]
fn nulls_are_equal_to_each_other_and_unequal_on_one_side_only() {
    assert!(matches("a = b", &[]));
    assert!(!matches("a = b", &[("a", "1")]) && matches("a <> b", &[("a", "1")]));
    assert!(!matches("a = b", &[("b", "1")]) && !matches("a <> b", &[("b", "1")]));
    assert!(matches("NOT (1 = a)", &[]) && !matches("NOT (a = 1)", &[]));
}

#[test]
fn properties_are_compared_with_each_other_as_numbers_by_order_and_as_texts_by_equality() {
    assert!(matches("a > b", &[("a", " 10 "), ("b", "9.5f")]));
    assert!(!matches("a = b", &[("a", "1"), ("b", "1.0")]));
    for wrong in ["x", "", "inf", "nan", "1e", "0x1p3", "1_0"] {
        assert!(!matches("a > b OR a <= b", &[("a", wrong), ("b", "1")]), "{wrong:?}");
    }
    assert!(matches("a > b", &[("a", "Infinity"), ("b", "1e308")]));
    assert!(matches("a > b", &[("a", "NaN"), ("b", "Infinity")]));
    assert!(matches("a < b", &[("a", "-0.0"), ("b", "+0")]));
}

#[test]
fn numbers_of_different_types_are_compared_as_the_wider_one() {
    for expression in [
        "1 = 1.0",
        "3000000000 > 5",
        "5 < 3000000000",
        "3000000000 = 3e9",
        "3e9 >= 3000000000",
        "3000000000 = 3000000000",
        "- -5 = 5",
        "-3000000000 < -2.5",
        "a BETWEEN -1.5 AND 3000000000",
    ] {
        assert!(matches(expression, &[("a", "-1")]), "{expression}");
    }
    assert!(!matches("a BETWEEN -1.5 AND 3000000000", &[("a", "2.5")]), "2.5 is no long");
    assert!(matches("a NOT BETWEEN -1.5 AND 3000000000", &[("a", "-2.5")]), "the first side decides");
}

#[test]
fn conditions_are_values_of_comparisons() {
    assert!(matches("(a = 1) = (b = 2)", &[("a", "0"), ("b", "0")]));
    assert!(!matches("(a = 1) = (b = 2)", &[("a", "1"), ("b", "0")]));
    assert!(matches("a = (b = 2)", &[("a", "True"), ("b", "2")]));
    assert_eq!(
        Sql::parse("TRUE = a").unwrap().evaluate([("a", "true")].into_iter()),
        Err(EvalError::WrongTypes)
    );
    assert!(matches("(a = 1) IS NULL", &[]) && !matches("NOT (a = 1) IS NOT NULL", &[]));
    assert!(
        !matches("-a = 5 OR - (a = 1) CONTAINS 'x'", &[("a", "-5")]),
        "what is no number has no negative"
    );
}

#[test]
fn of_two_properties_with_one_name_the_later_counts() {
    assert!(matches("a = 2", &[("a", "1"), ("a", "2")]));
}

#[test]
fn errors_say_where_and_what() {
    let expected = [
        ("", "at character 1: it is empty: write a condition, like a > 5"),
        ("a == 1", "at character 4: expected a property, a number, a text or `(`, found `=`"),
        ("a != 1", "at character 3: `!` means nothing here: unequal is <>"),
        ("a = \"x\"", "at character 5: `\"` means nothing here: a text stands between single quotes"),
        ("a = 'x", "at character 5: the text does not end: write ' where it does"),
        ("a /* b", "at character 3: the comment does not end: write */ where it does"),
        ("a = NULL", "at character 3: nothing is compared with NULL: write IS NULL or IS NOT NULL"),
        ("a > '5'", "at character 3: only numbers and properties are compared by order"),
        ("'é' = 'é' AND 5", "at character 15: this is a value, not a condition"),
        ("a BETWEEN 5 AND 1", "at character 3: BETWEEN has the smaller number first"),
        ("a BETWEEN NULL AND 1", "at character 3: BETWEEN has no NULL"),
        ("a NOT BETWEEN 1 OR 5", "at character 17: expected AND and the larger number, found OR"),
        ("a IN (1)", "at character 7: expected a text between single quotes, found `1`"),
        ("a IN 'x'", "at character 6: expected a list like ('x', 'y') after IN, found the text 'x'"),
        ("a IN ('x' 'y')", "at character 11: expected `,` or `)`, found the text 'y'"),
        ("5 IN ('x')", "at character 3: only a property is looked for IN a list"),
        ("5 CONTAINS 'x'", "at character 3: only a property or a text contains a text"),
        ("a IS 1", "at character 6: expected NULL or NOT NULL after IS, found `1`"),
        ("a NOT = 1", "at character 7: expected CONTAINS, STARTSWITH, ENDSWITH, BETWEEN or IN after NOT"),
        ("TRUE = 'x'", "at character 6: TRUE and FALSE are not compared with a number or a text"),
        ("(a = 1", "at character 7: expected `)`, found the end"),
        ("a = 9223372036854775808", "at character 5: the number is beyond 9223372036854775807"),
        ("a > 0.0", "at character 5: a number with a point or an exponent must be above 0"),
        ("a > 1e999", "at character 5: a number with a point or an exponent must be above 0"),
    ];
    for (expression, expected) in expected {
        let found = refused(expression);
        assert!(found.contains(expected), "{expression:?}: expected {expected:?}, found {found:?}");
    }
}

#[test]
fn what_follows_an_expression_is_ignored_and_told() {
    let tail = |expression: &str| Sql::parse(expression).unwrap().ignored_from();
    assert_eq!((tail("a LIKE 'x%'"), tail("a = 1 b ; c"), tail("a = 1 -- b")), (Some(3), Some(7), Some(7)));
    assert_eq!((tail("a = 1 -- b\n"), tail("a = 1 /* b */ "), tail("a = 007")), (None, None, Some(6)));
    assert!(matches("a = -- two signs", &[]) || refused("a = -- two signs").contains("expected"));
}

#[test]
fn bounds_are_kept_with_a_sentence() {
    let at_most = |text: String| Sql::parse(&text).unwrap_or_else(|error| panic!("{error}"));
    let in_list = (0..2000).fold(String::from("a IN ('x'"), |list, number| format!("{list},'{number}'"));
    assert!(at_most(in_list + ")").matches(properties(&[("a", "1999")]).view()));
    assert!(at_most(format!("a = '{}'", "x".repeat(EXPRESSION_BYTES_MAX - 6))).terms() == 1);
    assert!(
        refused(&" ".repeat(EXPRESSION_BYTES_MAX + 1)).contains("the limit is 16384: write a shorter one")
    );
    for open in ["(", "NOT ", "- ", "+", "NOT (", "-("] {
        let close = if open.ends_with('(') { ")" } else { "" };
        let nested = |depth| format!("{}TRUE{} IS NULL", open.repeat(depth), close.repeat(depth));
        at_most(nested(40));
        assert!(refused(&nested(EXPRESSION_BYTES_MAX / 8)).contains("nested more than 100 deep"), "{open}");
    }
    assert!(refused(&format!("a{}", " IS NULL".repeat(1000))).contains("nested more than 100 deep"));
    let row = |count: usize| vec!["a = 1"; count].join(" OR ");
    at_most(row(TERMS_MAX - 1));
    assert!(refused(&row(TERMS_MAX)).contains("more than 1024 operations"));
    let names = |count| (0..count).map(|number| format!("p{number}")).collect::<Vec<_>>().join(" OR ");
    assert!(!at_most(names(PROPERTIES_MAX)).matches(properties(&[("p127", "x")]).view()));
    assert!(refused(&names(PROPERTIES_MAX + 1)).contains("more than 128 properties"));
}

#[test]
fn nested_between_is_looked_at_once_each() {
    let mut expression = String::from("a");
    for _ in 0..45 {
        expression = format!("-({expression} BETWEEN 1 AND 2)");
    }
    assert!(!matches(&format!("{expression} = 1"), &[("a", "1")]));
}

/// Words that expressions are made of.
fn words() -> impl Strategy<Value = String> {
    let word = prop::sample::select(vec![
        "a",
        "b",
        "_c$1",
        "TAGS",
        "'x'",
        "'it''s'",
        "''",
        "'",
        "0",
        "1",
        "5L",
        "007",
        "1.5",
        ".5",
        "5.",
        "1e2",
        "3000000000",
        "=",
        "<>",
        ">",
        ">=",
        "<",
        "<=",
        "(",
        ")",
        ",",
        "+",
        "-",
        "AND",
        "or",
        "Not",
        "IS",
        "NULL",
        "BETWEEN",
        "IN",
        "TRUE",
        "false",
        "CONTAINS",
        "STARTSWITH",
        "ENDSWITH",
        "--",
        "/*",
        "*/",
        "\n",
        "é",
        "!",
    ]);
    prop::collection::vec(word, 0..24).prop_map(|words| words.join(" "))
}

/// A condition of constants, and its value.
fn logic() -> impl Strategy<Value = (String, Option<bool>)> {
    let leaf = prop::sample::select(vec![
        ("TRUE", Some(true)),
        ("FALSE", Some(false)),
        ("NULL", None),
        ("missing = 1", None),
        ("there = 'x'", Some(true)),
        ("there IN ('y')", Some(false)),
    ]);
    let leaf = leaf.prop_map(|(text, value)| (text.to_owned(), value));
    leaf.prop_recursive(6, 40, 4, |inner| {
        let and = |values: &[Option<bool>]| {
            if values.contains(&Some(false)) {
                Some(false)
            } else {
                values.iter().copied().collect::<Option<Vec<_>>>().map(|_| true)
            }
        };
        let or = |values: &[Option<bool>]| {
            if values.contains(&Some(true)) {
                Some(true)
            } else {
                values.iter().copied().collect::<Option<Vec<_>>>().map(|_| false)
            }
        };
        let several = prop::collection::vec(inner.clone(), 2..5);
        prop_oneof![
            inner.prop_map(|(text, value)| (format!("NOT ({text})"), value.map(|value| !value))),
            (several, any::<bool>()).prop_map(move |(parts, all)| {
                let texts: Vec<_> = parts.iter().map(|(text, _)| format!("({text})")).collect();
                let values: Vec<_> = parts.iter().map(|(_, value)| *value).collect();
                let (word, value) = if all { (" AND ", and(&values)) } else { (" OR ", or(&values)) };
                (texts.join(word), value)
            }),
        ]
    })
}

proptest! {
    #[test]
    fn any_text_gives_an_expression_or_an_error_with_a_place(text in "\\PC{0,60}|[ab'()=<>+.0-9-]{0,80}") {
        if let Err(error) = Sql::parse(&text) {
            let place = matches!(error, SqlError::Wrong { at, .. } if at >= 1 && at <= text.chars().count() + 1);
            prop_assert!(place, "{}", error);
        }
    }

    #[test]
    fn any_bytes_give_an_expression_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = Sql::parse(&String::from_utf8_lossy(&bytes));
    }

    #[test]
    fn any_row_of_words_has_a_value_or_none(text in words(), a in "\\PC{0,6}|-?[0-9.eE]{0,12}", b in "[0-9]{0,3}") {
        if let Ok(sql) = Sql::parse(&text) {
            let all = properties(&[("a", &a), ("b", &b), ("TAGS", "x")]);
            let value = sql.evaluate(all.view().iter());
            prop_assert_eq!(sql.matches(all.view()), value == Ok(Some(true)));
            prop_assert!(sql.terms() <= TERMS_MAX);
        }
    }

    #[test]
    fn logic_has_three_values((text, value) in logic()) {
        let sql = Sql::parse(&text).unwrap();
        prop_assert_eq!(sql.evaluate([("there", "x")].into_iter()), Ok(value), "{}", text);
    }
}
