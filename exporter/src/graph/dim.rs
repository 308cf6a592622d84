//! Symbolic sizes: polynomials with rational coefficients over named symbols.
//!
//! `8*height`, `height/2` and `height*width/4` are all one kind of value, in a normal form, so that
//! two sizes are equal exactly when they compare equal. Division is only possible where it is known
//! to be exact: a symbol carries the number that its value is always a multiple of.

use std::collections::BTreeMap;
use std::fmt;

/// A named size that is known only when the graph runs.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Symbol {
    /// The name, as written into the ONNX file (`dim_param`).
    pub name: String,
    /// The value is always a multiple of this (1 when nothing is known).
    pub multiple_of: i64,
}

/// A product of symbols, sorted; empty for the constant term.
type Monomial = Vec<Symbol>;

/// A rational coefficient in lowest terms, denominator positive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Ratio {
    num: i64,
    den: i64,
}

impl Ratio {
    fn new(num: i64, den: i64) -> Self {
        let g = gcd(num, den).max(1) * den.signum();
        Self { num: num / g, den: den / g }
    }
}

fn gcd(a: i64, b: i64) -> i64 {
    if b == 0 { a.abs() } else { gcd(b, a % b) }
}

/// One term of a size: `numerator · Π symbols / denominator`.
pub(super) struct Term {
    /// The factors, each a single symbol.
    pub symbols: Vec<Dim>,
    /// Numerator of the coefficient.
    pub numerator: i64,
    /// Denominator of the coefficient, positive.
    pub denominator: i64,
}

/// One size of a tensor: a constant, a symbol, or a polynomial over symbols such as `8*height`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Dim {
    // No entry has a zero coefficient, so equal sizes are equal maps.
    terms: BTreeMap<Monomial, Ratio>,
}

impl Dim {
    /// The size named `name`, about which nothing else is known.
    pub fn symbol(name: &str) -> Self {
        Self::symbol_multiple_of(name, 1)
    }

    /// The size named `name`, always a multiple of `multiple_of` (at least 1).
    pub fn symbol_multiple_of(name: &str, multiple_of: i64) -> Self {
        let symbol = Symbol { name: name.to_owned(), multiple_of: multiple_of.max(1) };
        Self { terms: BTreeMap::from([(vec![symbol], Ratio::new(1, 1))]) }
    }

    /// The terms whose sum the size is, the constant included.
    pub(super) fn terms(&self) -> impl Iterator<Item = Term> {
        self.terms.iter().map(|(monomial, ratio)| Term {
            symbols: monomial
                .iter()
                .map(|symbol| Self {
                    terms: BTreeMap::from([(vec![symbol.clone()], Ratio::new(1, 1))]),
                })
                .collect(),
            numerator: ratio.num,
            denominator: ratio.den,
        })
    }

    /// The value, when it does not depend on any symbol.
    pub fn as_const(&self) -> Option<i64> {
        match self.terms.len() {
            0 => Some(0),
            1 => self.terms.get(&Vec::new()).filter(|r| r.den == 1).map(|r| r.num),
            _ => None,
        }
    }

    /// True when the size is the constant `value`.
    pub fn is(&self, value: i64) -> bool {
        self.as_const() == Some(value)
    }

    /// The value where `symbol` gives every symbol's; `None` where it knows one of them not, or where
    /// the value is no whole number.
    pub fn evaluate(&self, symbol: impl Fn(&str) -> Option<i64>) -> Option<i64> {
        let mut sum = Ratio::new(0, 1);
        for (monomial, ratio) in &self.terms {
            let mut product = ratio.num;
            for factor in monomial {
                product = product.checked_mul(symbol(&factor.name)?)?;
            }
            let num = sum.num.checked_mul(ratio.den)?.checked_add(product.checked_mul(sum.den)?)?;
            sum = Ratio::new(num, sum.den.checked_mul(ratio.den)?);
        }
        (sum.den == 1).then_some(sum.num)
    }

    /// `self / divisor` where that is exact for every value of the symbols, else `None`.
    ///
    /// A constant divisor must divide every term; any other divisor must be a single term.
    pub fn exact_div(&self, divisor: &Dim) -> Option<Dim> {
        let (by, factor) = match divisor.terms.len() {
            1 => divisor.terms.iter().next()?,
            _ => return None,
        };
        let mut terms = BTreeMap::new();
        for (monomial, ratio) in &self.terms {
            let mut rest = monomial.clone();
            for symbol in by {
                rest.remove(rest.iter().position(|s| s == symbol)?);
            }
            let ratio =
                Ratio::new(ratio.num.checked_mul(factor.den)?, ratio.den.checked_mul(factor.num)?);
            // The known multiples of the remaining symbols must cover the denominator.
            let mut den = ratio.den;
            for symbol in &rest {
                den /= gcd(den, symbol.multiple_of);
            }
            if den != 1 {
                return None;
            }
            terms.insert(rest, ratio);
        }
        Some(Dim { terms })
    }
}

impl From<i64> for Dim {
    fn from(value: i64) -> Self {
        let mut terms = BTreeMap::new();
        if value != 0 {
            terms.insert(Vec::new(), Ratio::new(value, 1));
        }
        Self { terms }
    }
}

impl From<usize> for Dim {
    fn from(value: usize) -> Self {
        // A size that does not fit i64 cannot occur in a tensor.
        Self::from(i64::try_from(value).unwrap_or(i64::MAX))
    }
}

impl From<i32> for Dim {
    fn from(value: i32) -> Self {
        Self::from(i64::from(value))
    }
}

impl std::ops::Add for &Dim {
    type Output = Dim;
    fn add(self, other: &Dim) -> Dim {
        let mut terms = self.terms.clone();
        for (monomial, r) in &other.terms {
            let old = terms.get(monomial).copied().unwrap_or(Ratio { num: 0, den: 1 });
            let sum = Ratio::new(old.num * r.den + r.num * old.den, old.den * r.den);
            if sum.num == 0 {
                terms.remove(monomial);
            } else {
                terms.insert(monomial.clone(), sum);
            }
        }
        Dim { terms }
    }
}

impl std::ops::Mul for &Dim {
    type Output = Dim;
    fn mul(self, other: &Dim) -> Dim {
        let mut product = Dim::from(0);
        for (m1, r1) in &self.terms {
            for (m2, r2) in &other.terms {
                let mut monomial = [m1.as_slice(), m2.as_slice()].concat();
                monomial.sort();
                let ratio = Ratio::new(r1.num * r2.num, r1.den * r2.den);
                product = &product + &Dim { terms: BTreeMap::from([(monomial, ratio)]) };
            }
        }
        product
    }
}

/// The product of sizes: the number of elements of a shape.
pub fn product(shape: &[Dim]) -> Dim {
    shape.iter().fold(Dim::from(1), |acc, dim| &acc * dim)
}

impl fmt::Display for Dim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.terms.is_empty() {
            return f.write_str("0");
        }
        // Symbols first, the constant last: `height + 1`.
        let constant = self.terms.get(&Vec::new()).map(|r| (&[][..], r));
        let symbolic =
            self.terms.iter().filter(|(m, _)| !m.is_empty()).map(|(m, r)| (m.as_slice(), r));
        for (index, (monomial, ratio)) in symbolic.chain(constant).enumerate() {
            match (index, ratio.num < 0) {
                (0, false) => {}
                (0, true) => f.write_str("-")?,
                (_, false) => f.write_str(" + ")?,
                (_, true) => f.write_str(" - ")?,
            }
            let names: Vec<&str> = monomial.iter().map(|s| s.name.as_str()).collect();
            let number = ratio.num.abs();
            match (number, names.is_empty()) {
                (_, true) => write!(f, "{number}")?,
                (1, false) => f.write_str(&names.join("*"))?,
                (_, false) => write!(f, "{number}*{}", names.join("*"))?,
            }
            if ratio.den != 1 {
                write!(f, "/{}", ratio.den)?;
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Dim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A shape in the form of messages: `[batch_size, 4, height, width]`.
pub fn display_shape(shape: &[Dim]) -> String {
    let dims: Vec<String> = shape.iter().map(Dim::to_string).collect();
    format!("[{}]", dims.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_sizes_are_equal_values() {
        let h = Dim::symbol_multiple_of("height", 2);
        let w = Dim::symbol_multiple_of("width", 2);
        let two = Dim::from(2);
        let h2 = h.exact_div(&two).unwrap();
        let w2 = w.exact_div(&two).unwrap();
        let tokens = &h2 * &w2;
        assert_eq!(&w2 * &h2, tokens);
        assert_eq!(&(&tokens * &two) * &two, &h * &w);
        assert_eq!(&h2 * &two, h);
        assert_ne!(h2, w2);
    }

    #[test]
    fn division_must_be_exact() {
        let even = Dim::symbol_multiple_of("height", 2);
        let any = Dim::symbol("length");
        assert_eq!(any.exact_div(&Dim::from(2)), None);
        assert_eq!(even.exact_div(&Dim::from(4)), None);
        assert_eq!(Dim::from(7).exact_div(&Dim::from(2)), None);
        assert_eq!(Dim::from(8).exact_div(&Dim::from(2)), Some(Dim::from(4)));
        assert_eq!((&even * &any).exact_div(&any), Some(even.clone()));
        assert_eq!(any.exact_div(&even), None);
        assert_eq!(even.exact_div(&Dim::from(0)), None);
    }

    #[test]
    fn sizes_have_values_where_their_symbols_have() {
        let h = Dim::symbol_multiple_of("height", 2);
        let tokens = (&h * &Dim::symbol("width")).exact_div(&Dim::from(2)).unwrap();
        let value = |name: &str| match name {
            "height" => Some(6),
            "width" => Some(5),
            _ => None,
        };
        assert_eq!((&tokens + &Dim::from(-1)).evaluate(value), Some(14));
        assert_eq!(Dim::symbol("length").evaluate(value), None);
        assert_eq!(h.exact_div(&Dim::from(2)).unwrap().evaluate(|_| Some(3)), None);
        assert_eq!(Dim::from(0).evaluate(|_| None), Some(0));
    }

    #[test]
    fn sums_cancel_and_print() {
        let h = Dim::symbol_multiple_of("height", 2);
        let w = Dim::symbol_multiple_of("width", 2);
        let minus = &Dim::from(-1) * &h;
        assert_eq!(&h + &minus, Dim::from(0));
        assert_eq!((&Dim::from(8) * &h).to_string(), "8*height");
        assert_eq!((&h * &w).exact_div(&Dim::from(4)).unwrap().to_string(), "height*width/4");
        assert_eq!((&minus + &Dim::from(3)).to_string(), "-height + 3");
        assert_eq!(display_shape(&[h, Dim::from(0)]), "[height, 0]");
    }
}
